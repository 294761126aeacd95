"""The configuration of a run: one frozen tree, loaded strictly, dumped so that it replays the run.

Every field is declared here once, with its default, its unit and its range; nothing else in the package holds a
default. Files are read by :mod:`gdps_ds.config_file`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gdps_ds.config_decode import DecodeConfig as DecodeConfig
from gdps_ds.fields import ConfigValue, Count, Fraction, Globs, Language, Location, NonNegative, Positive, Section

Arm = Literal[
    "gdps", "uniform", "wide", "pcgrad",
    "random-groups", "random-neurons", "per-language", "all-private", "shared-25", "shared-50", "shared-75",
    "other-ffn", "other-layer", "paper", "paper-no-a", "paper-no-b", "paper-no-c",
]  # fmt: skip
"""Continuations of a unified model; :mod:`gdps_ds.analysis.arms` says what each of them is."""


class RunConfig(Section):
    """Where a run lives and how it is repeated."""

    dir: Location = Field(description="run directory: resolved config, plan, checkpoints, metrics, hypotheses, scores")
    seed: int = Field(1, ge=0, description="seeds initial weights, sampling order, dropout and sketches")
    resume: Literal["auto", "never"] = Field("auto", description="auto goes on from the newest checkpoint in run.dir")
    arms: tuple[Arm, ...] = Field(
        ("gdps", "uniform"),
        min_length=1,
        description="continuations of the unified model that are trained and compared, see gdps_ds.analysis.arms",
    )
    unified: Location | None = Field(None, description="run directory whose unified model the arms start from; null trains one")
    keep_checkpoints: Count = Field(2, description="newest checkpoints of a phase that are kept, beside the best one")
    use: Literal["last", "best"] = Field(
        "last",
        description="checkpoint of a finished phase that is used: arms start from the unified phase's, and an arm's is scored; "
        "with best, train.select says which that is, and it is kept whenever an evaluation finds a better one",
    )


class CorpusConfig(Section):
    """One corpus as it was downloaded, and which of its splits play which part."""

    layout: str = Field(description="name of the layout, see gdps_ds.data.corpora.LAYOUTS")
    root: Location = Field(description="folder of the corpus; relative paths start at the working directory")
    train: str = Field("train", description="split used for training and mining")
    dev: str = Field("dev", description="split that is evaluated during training")
    test: str = Field("test", description="split that is translated, and scored where it has references")
    audio_roots: tuple[Location, ...] = Field(
        (), description="layout manifest: folders beside root that hold audio; a manifest that names files elsewhere is refused"
    )


class SpecAugmentConfig(Section):
    """Masks over training features (Park et al. 2019); the defaults are that paper's policy LD without time warping."""

    time_masks: int = Field(2, ge=0, description="masked stretches of time")
    time_width: Count = Field(100, description="longest of them, in windows of 10 ms")
    time_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.2, description="longest of them, as a share of the utterance")
    mel_masks: int = Field(2, ge=0, description="masked bands of frequency")
    mel_width: Annotated[int, Field(ge=1, le=80)] = Field(27, description="widest of them, in mel bins of 80")


class DataConfig(Section):
    """Languages, corpora and how utterances become micro-batches."""

    languages: tuple[Language, ...] = Field(min_length=1, description="source languages, ISO 639-3")
    corpora: tuple[CorpusConfig, ...] = Field(min_length=1, description="corpora, read one after the other")
    min_seconds: Positive = Field(0.1, description="shorter utterances are not trained on, and counted; dev and test keep them")
    max_seconds: Positive = Field(30.0, description="longest utterance of training; dev and test keep longer ones")
    too_long: Literal["skip", "cut"] = Field(
        "skip", description="longer utterances of the training set are left out or cut, and counted"
    )
    temperature: Annotated[float, Field(ge=1.0)] = Field(
        1.0, description="language l is drawn in proportion to n_l ** (1 / temperature); 1 keeps the corpus as it is"
    )
    max_frames: Count = Field(
        3000,
        description="frame budget of a micro-batch, padding included (a frame is 20 ms); the dev loss leaves out, and counts, "
        "longer utterances",
    )
    max_utterances: Count = Field(64, description="most utterances in a micro-batch")
    max_target_tokens: Count = Field(256, description="longer targets are left out of training, and counted")
    workers: int = Field(0, ge=0, description="loader processes a rank (and for preparing data); 0 for none")
    cache_features: bool = Field(True, description="keep filter banks on disk under run.dir instead of recomputing them")
    speeds: tuple[Annotated[float, Field(ge=0.5, le=2.0)], ...] = Field(
        (1.0,),
        min_length=1,
        description="speeds at which training hears an utterance, one drawn each epoch; [0.9, 1.0, 1.1] is three-fold speed "
        "perturbation. Other speeds than 1 are decoded anew each time: set workers",
    )
    spec_augment: SpecAugmentConfig | None = Field(
        None, description="masks over training features; null for none, {} for the published ones"
    )

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if len(set(self.languages)) != len(self.languages):
            raise ValueError(f"languages repeats a language: {', '.join(self.languages)}")
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"min_seconds ({self.min_seconds}) must be below max_seconds ({self.max_seconds})")
        frames = self.max_seconds * 50 / min(self.speeds)
        if self.max_frames < frames:
            at_speed = "" if min(self.speeds) == 1.0 else f" at speed {min(self.speeds)}"
            raise ValueError(
                f"max_frames ({self.max_frames}) cannot hold one utterance of max_seconds ({self.max_seconds} s{at_speed} = "
                f"{frames:.0f} frames)"
            )
        if max(self.speeds) > 1.0 and self.min_seconds / max(self.speeds) < 0.04:
            raise ValueError(f"min_seconds ({self.min_seconds}) leaves no frame of an utterance at speed {max(self.speeds)}")
        return self


class ModelConfig(Section):
    """Which speech-to-text model is trained."""

    pretrained: Location | None = Field(None, description="SeamlessM4T checkpoint: path or hub name; null builds a new model")
    config: dict[str, ConfigValue] = Field(
        default_factory=dict,
        description="fields of the transformers config set on top of the checkpoint's (or the class's)",
    )
    vocab_size: Count = Field(500, description="SentencePiece pieces of a new model's tokenizer (pretrained: null)")
    freeze: tuple[str, ...] = Field((), description="glob patterns of parameters not trained; frozen weights are never split")
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")


class PhaseConfig(Section):
    """One stretch of optimisation."""

    updates: int = Field(ge=0, description="optimiser updates")
    lr: Positive = Field(description="peak learning rate")
    warmup: int = Field(0, ge=0, description="updates of linear warm-up, then inverse square root decay")
    weight_decay: NonNegative = Field(0.0, description="decoupled from the gradient, as in AdamW")
    patience: Count | None = Field(None, description="evaluations without a better one (train.select) that end the phase")


class SelectConfig(Section):
    """Which evaluation of the dev set is the best one, for ``run.use: best`` and ``patience``."""

    by: Literal["loss", "bleu"] = Field("loss", description="lowest dev loss, or highest dev BLEU (decode.normaliser)")
    language: Language | None = Field(None, description="whose; null takes the mean over languages")
    beams: Count = Field(1, description="beams of the translations that dev BLEU is computed from")


class LaterPlan(Section):
    """A plan that takes the place of the one before, in the live engine."""

    update: Count = Field(description="updates of the specialising phase after which it is applied")
    from_file: Location = Field(alias="from", description="plan.json; one without sites merges the lanes again")


class SpecialiseConfig(PhaseConfig):
    """Grouped fine-tuning after the split (Section 3 of the paper)."""

    private_lr: Positive | None = Field(None, description="peak learning rate of the private lanes; null uses lr")
    private_weight_decay: NonNegative | None = Field(None, description="null uses weight_decay")
    later_plans: tuple[LaterPlan, ...] = Field((), description="plans that split the gdps arm further, regroup or merge it")

    @model_validator(mode="after")
    def _check(self) -> SpecialiseConfig:
        at = [plan.update for plan in self.later_plans]
        if self.later_plans and self.patience is not None:
            raise ValueError("patience may end the phase before its later_plans are applied; use one of the two")
        if at != sorted(set(at)) or (at and at[-1] >= self.updates):
            raise ValueError(f"later_plans must have ascending updates below {self.updates}, found {at}")
        return self


class TrainConfig(Section):
    """The optimisation recipe, apart from what the DeepSpeed file says (ZeRO stage, precision, offload)."""

    micro_batches: Count = Field(2, description="micro-batches of an update over all ranks; a multiple of the world size")
    unify: PhaseConfig = Field(description="one model for all languages")
    specialise: SpecialiseConfig = Field(description="every arm, from the unified model on")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.98), description="AdamW's decay rates of both moments")
    eps: Positive = Field(1e-8, description="AdamW's term in the denominator")
    clip_norm: NonNegative = Field(1.0, description="global gradient norm; 0 turns clipping off")
    label_smoothing: Fraction = Field(0.1, description="share of the target distribution that is spread over the vocabulary")
    log_every: Count = Field(10, description="updates between lines of metrics.jsonl")
    dev_every: Count = Field(200, description="updates between evaluations of the dev set")
    select: SelectConfig = Field(default_factory=SelectConfig)
    checkpoint_every: Count = Field(200, description="updates between checkpoints")


class MineConfig(Section):
    """The distributed gradient gatherer."""

    during: Literal["pass", "training"] = Field(
        "pass", description="a pass without updates at the unified model, or the last updates of the unified phase"
    )
    updates: Count = Field(50, description="pass: it sees the data of this many updates; training: updates of the window")
    every: Count = Field(1, description="during training: every n-th update of the window is mined")
    sites: Globs = Field(
        ("speech_encoder.encoder.layers.*.ffn1", "speech_encoder.encoder.layers.*.ffn2"),
        description="glob patterns of candidate feed-forward blocks",
    )
    neurons: Literal["chosen", "all"] = Field(
        "chosen", description="neuron sketches summed over ranks: of the sites that will be split, or of all candidates"
    )
    sketch: Count = Field(64, description="k of the core sketch (k x k) and the neuron sketch (h x k)")
    exact: tuple[str, ...] = Field(
        (), description="glob patterns of candidates whose full gradient of each language is saved too (gradients.safetensors)"
    )
    again: bool = Field(True, description="mine the trained arms as well, for the report: similarities before and after")
    folds: Annotated[int, Field(ge=2)] = Field(10, description="folds of utterances; their scatter gives the intervals")


class PlanConfig(Section):
    """What rank 0 decides, by which rule; ``from_file`` takes a plan that exists instead."""

    from_file: Location | None = Field(None, alias="from", description="plan.json to apply instead of planning")
    rule: Literal["ours", "paper"] = Field("ours", description="similarity used for groups, sites and capacity")
    sites: Count | Globs = Field(1, description="how many sites to split, or glob patterns that name them")
    groups: Literal["auto"] | Annotated[int, Field(ge=2)] | tuple[tuple[Language, ...], ...] = Field(
        "auto", description="auto, a number of groups, or the groups themselves"
    )
    clustering: Literal["average", "ward", "k-means"] | None = Field(
        None, description="how languages are grouped; null takes the rule's: average linkage (ours) or Ward (paper)"
    )
    shared: Literal["paper", "continuous"] | Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        "continuous", description="rule for the shared fraction of the hidden neurons, or the fraction itself"
    )
    width: Literal["preserve", "constant"] = Field(
        "preserve",
        description="preserve: private width h - r for each group; constant: (h - r) / G, parameters unchanged",
    )
    init: Literal["neurons", "svd", "random"] = Field("neurons", description="neurons with preserve keeps the function")
    round_to: Count = Field(64, description="shared width is a multiple of this (8 for tiny models)")
    min_stability: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.8, description="share of bootstrap replicates that must agree on the groups, else the model stays uniform"
    )
    bootstrap: Count = Field(1000, description="bootstrap replicates over folds")

    @model_validator(mode="after")
    def _check(self) -> PlanConfig:
        if isinstance(self.groups, tuple):
            flat = [language for group in self.groups for language in group]
            if len(flat) != len(set(flat)):
                raise ValueError("groups names a language twice")
            if len(self.groups) < 2 or not all(self.groups):
                raise ValueError("groups needs at least two groups, none of them empty")
        return self


class GuardConfig(Section):
    """What ends a run that cannot go on, and how soon."""

    setup_timeout: Positive = Field(
        3600.0, description="seconds that ranks wait for rank 0 while it prepares data, plans, scores or makes the report"
    )
    timeout: Positive = Field(
        600.0,
        description="seconds that ranks wait for each other in any collective afterwards, and that a training rank may take "
        "over one micro-batch, checkpoint or batch of data; the whole job ends when they are over",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="an update with a NaN or infinite gradient ends the run, or is left out and counted"
    )
    max_skipped: Count = Field(10, description="updates in a row that may be left out; one more ends the run")


class TrackConfig(Section):
    """Where progress is reported; metrics.jsonl is always written."""

    wandb: bool = Field(False, description="log to Weights & Biases; WANDB_MODE=offline needs no account")
    project: str = Field("gdps_ds", description="W&B project")
    name: str | None = Field(None, description="run name; null uses the name of run.dir")
    group: str | None = Field(
        None,
        description="the unified phase and each arm are W&B runs of this group, so that arms share panels; null uses the name",
    )
    tags: tuple[str, ...] = Field((), description="tags of all of them; each also has its arm as a tag")
    artifacts: tuple[Literal["plan", "checkpoints"], ...] = Field(
        (), description="uploaded with the report: plan.json; the checkpoints that are kept of each phase"
    )
    report: bool = Field(True, description="report.html at the end of a run; false leaves it to launchers/report.py")
    progress: bool = Field(True, description="progress bars on rank 0")


class Config(Section):
    """A whole experiment."""

    deepspeed: Location = Field(description="DeepSpeed JSON: ZeRO stage, precision, offload; such as ds_configs/zero2.json")
    run: RunConfig
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig
    mine: MineConfig = Field(default_factory=MineConfig)
    plan: PlanConfig = Field(default_factory=PlanConfig)
    decode: DecodeConfig = Field(default_factory=DecodeConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    track: TrackConfig = Field(default_factory=TrackConfig)

    @property
    def decoding(self) -> DecodeConfig:
        """Section ``decode`` as translation takes it: the length of pieces is a number."""
        return self.decode.with_pieces_of(self.data.max_seconds)

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.mine.during == "training" and self.mine.updates > self.train.unify.updates:
            raise ValueError(
                f"mine.updates ({self.mine.updates}) during training cannot exceed train.unify.updates "
                f"({self.train.unify.updates})"
            )
        if self.mine.during == "training" and self.train.unify.patience is not None:
            raise ValueError("train.unify.patience may end the phase before its gradients are mined; set mine.during: pass")
        chosen = self.train.select.language
        if chosen is not None and chosen not in self.data.languages:
            raise ValueError(f"train.select.language: '{chosen}' is none of data.languages ({', '.join(self.data.languages)})")
        elsewhere = [arm for arm in self.run.arms if arm in ("other-ffn", "other-layer")]
        if elsewhere and self.mine.neurons != "all":
            raise ValueError(f"run.arms: {' and '.join(elsewhere)} split sites that ours does not, so set mine.neurons: all")
        groups, languages = self.plan.groups, self.data.languages
        if isinstance(groups, int) and groups > len(languages):
            raise ValueError(f"plan.groups: {groups} groups of {len(languages)} languages (data.languages)")
        if isinstance(groups, tuple):
            named, spoken = sorted({language for group in groups for language in group}), sorted(languages)
            if named != spoken:
                raise ValueError(f"plan.groups names {', '.join(named)} but data.languages has {', '.join(spoken)}")
        return self

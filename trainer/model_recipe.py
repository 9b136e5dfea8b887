"""The shape of a decoder, and the sizes that follow from it: parameters, and operations of a token.

One readable form covers the families that transformers knows (`trainer/families/`): grouped-query or latent attention,
dense layers or mixtures of experts, further tokens predicted or not. Whatever is set here is computed, and whatever
transformers cannot compute is said at export, not approximated.
"""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.recipe import Section
from trainer.router_settings import RouterSettings

GROUPED_ALIGNMENT = 8  # torch.nn.functional.grouped_mm wants strides of 16 bytes: 8 bf16 values
MOST = 2**24  # of any size: far beyond what is trained, and small enough that products of three fit 64 bits
MOST_LAYERS = 4096
LATENT_EPS = 1e-6  # of the norms on latents: fixed in transformers, whatever the model's norm_eps is


class RopeSettings(Section):
    """How rotary wavelengths are stretched beyond the context that a model was first trained on.

    Attributes:
        kind: `yarn` (arXiv:2309.00071), `linear` (arXiv:2306.15595) or `llama3` (that of Llama 3.1).
        factor: longest context over the original one.
        original_positions: context before the stretching.
        beta_fast: `yarn`: wavelengths that turn more often than this within the original context stay as they are.
        beta_slow: `yarn`: those that turn less often are stretched by the whole factor.
        attention_factor: `yarn`: factor on cosines and sines; None follows from `mscale` and `factor`.
        mscale: `yarn`: DeepSeek's weight of the logarithm of `factor` in that factor; 0 when it has none.
        mscale_all_dim: `yarn`: the same for all dimensions of a head; in latent attention it also scales the logits.
        truncate: `yarn`: round the bounds between kept and stretched wavelengths to whole dimensions.
        low_freq_factor: `llama3`: wavelengths longer than the original context over this are stretched.
        high_freq_factor: `llama3`: those shorter than the original context over this stay.
    """

    kind: Literal["yarn", "linear", "llama3"]
    factor: float = Field(ge=1)
    original_positions: int = Field(default=0, ge=0)
    beta_fast: float = Field(default=32.0, gt=0, le=1e6)
    beta_slow: float = Field(default=1.0, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)
    mscale: float = Field(default=0.0, ge=0, le=1e6)
    mscale_all_dim: float = Field(default=0.0, ge=0, le=1e6)
    truncate: bool = True
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "RopeSettings":
        if self.kind != "linear" and self.original_positions < 1:
            raise ValueError(f"{self.kind} needs original_positions, the context before stretching")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"high_freq_factor ({self.high_freq_factor}) must exceed {self.low_freq_factor}")
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast}) must not be below beta_slow ({self.beta_slow})")
        return self


class MlaSettings(Section):
    """Multi-head latent attention (arXiv:2405.04434, section 2.1): keys and values come from one small vector.

    A head's query and key have `head_dim` numbers, of which the last `rope_dim` are rotated; the rotated part of the
    key is shared by all heads.

    Attributes:
        kv_rank: size of the latent of keys and values.
        q_rank: size of the latent of queries; None projects them directly.
        rope_dim: rotated numbers of a head; even, below `head_dim`.
        value_dim: size of one head's value.
    """

    kv_rank: int = Field(ge=1, le=MOST)
    q_rank: int | None = Field(default=None, ge=1, le=MOST)
    rope_dim: int = Field(ge=2)
    value_dim: int = Field(ge=1, le=MOST)


class ModelSettings(Section):
    """The shape of a decoder.

    Attributes:
        layers: decoder layers.
        width: size of the residual stream.
        heads: query heads.
        kv_heads: key and value heads; divides `heads`.
        head_dim: size of one head; even, since rotary pairs are formed.
        ffn_width: hidden size of a dense SwiGLU layer.
        vocab_size: tokens that the embedding knows; 0 until the tokenizer is known (`with_vocabulary`).
        max_sequence: positions that the model declares.
        rope_theta: base of the rotary wavelengths.
        rope: how wavelengths are stretched; None leaves them.
        norm_eps: added to the mean square in RMSNorm.
        qk_norm: RMSNorm on queries and keys: of each `head` (Qwen3), over the `full` width (OLMoE) or `none`.
        qkv_bias: projections to queries, keys and values have a bias (Qwen2).
        mla: latent attention in place of grouped queries; it has norms of its own, so `qk_norm` must be `none`.
        tie_embeddings: the output projection is the embedding.
        initial_std: standard deviation of fresh weights; 0.02 is GPT-2's (arXiv:1909.08053, section 4).
        experts: routed experts per layer; 0 makes the model dense.
        experts_per_token: routed experts that a token visits.
        expert_width: hidden size of one expert.
        shared_experts: experts that every token visits, held as one.
        shared_width: hidden size of that one; 0 is `shared_experts * expert_width`.
        shared_gate: the shared expert's answer is scaled by a sigmoid of the token (Qwen2-MoE).
        dense_layers: leading layers that stay dense.
        expert_every: of the layers after them, those whose number (from 1) this divides have experts.
        router: how experts are scored, chosen, weighed and kept in balance.
        mtp_layers: modules that each predict one more token beyond the next (arXiv:2412.19437, section 2.2).
        mtp_weight: weight of the mean of their losses in the total.
    """

    layers: int = Field(ge=1, le=MOST_LAYERS)
    width: int = Field(ge=1, le=MOST)
    heads: int = Field(ge=1, le=MOST)
    kv_heads: int = Field(ge=1, le=MOST)
    head_dim: int = Field(ge=2, le=MOST)
    ffn_width: int = Field(ge=1, le=MOST)
    vocab_size: int = Field(default=0, ge=0, le=MOST)
    max_sequence: int = Field(default=2048, ge=1, le=2**31)
    rope_theta: float = Field(default=10_000.0, gt=1)
    rope: RopeSettings | None = None
    norm_eps: float = Field(default=1e-6, gt=0)
    qk_norm: Literal["none", "head", "full"] = "head"
    qkv_bias: bool = False
    mla: MlaSettings | None = None
    tie_embeddings: bool = True
    initial_std: float = Field(default=0.02, gt=0)
    experts: int = Field(default=0, ge=0, le=MOST)
    experts_per_token: int = Field(default=2, ge=1)
    expert_width: int = Field(default=0, ge=0, le=MOST)
    shared_experts: int = Field(default=1, ge=0, le=MOST)
    shared_width: int = Field(default=0, ge=0, le=MOST)
    shared_gate: bool = False
    dense_layers: int = Field(default=1, ge=0)
    expert_every: int = Field(default=1, ge=1)
    router: RouterSettings = RouterSettings()
    mtp_layers: int = Field(default=0, ge=0, le=MOST_LAYERS)
    mtp_weight: float = Field(default=0.3, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSettings":
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary embeddings turn pairs")
        if self.mla:
            self._check_mla(self.mla)
        if self.experts:
            self._check_experts()
        return self

    def _check_mla(self, mla: MlaSettings) -> None:
        if mla.rope_dim % 2 or mla.rope_dim >= self.head_dim:
            raise ValueError(f"mla.rope_dim ({mla.rope_dim}) must be even and below head_dim ({self.head_dim})")
        if self.kv_heads != self.heads:
            raise ValueError(f"kv_heads is {self.kv_heads}; with mla every head has its own, give {self.heads}")
        if self.qk_norm != "none" or self.qkv_bias:
            raise ValueError("mla norms its latents and has no bias; set qk_norm: none and qkv_bias: false")

    def _check_experts(self) -> None:
        if self.experts < 2 or self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token ({self.experts_per_token}) of {self.experts} experts: need 2 or more")
        for field, value in (("width", self.width), ("expert_width", self.expert_width)):
            if value < 1 or value % GROUPED_ALIGNMENT:
                raise ValueError(f"{field} ({value}) must be a multiple of {GROUPED_ALIGNMENT} in a model with experts")
        self.router.check(self.experts, self.experts_per_token)
        if bool(self.shared_width or self.shared_gate) and not self.shared_experts:
            raise ValueError("shared_width and shared_gate need shared_experts of 1 or more")

    def with_vocabulary(self, vocab_size: int) -> "ModelSettings":
        """The same shape over `vocab_size` tokens."""
        return self.model_copy(update={"vocab_size": vocab_size})

    def has_experts(self, layer: int) -> bool:
        """Whether this layer (from 0; prediction modules go on after the last) is a mixture of experts."""
        return self.experts > 0 and layer >= self.dense_layers and (layer + 1) % self.expert_every == 0

    @property
    def shared_hidden(self) -> int:
        """Hidden size of the shared expert; 0 when there is none."""
        return self.shared_width or self.shared_experts * self.expert_width

    @property
    def value_dim(self) -> int:
        """Size of one head's value."""
        return self.mla.value_dim if self.mla else self.head_dim

    def parameters(self) -> int:
        """Trained numbers in the model, tied ones counted once, prediction modules included."""
        return self._main(self.experts) + self.mtp_parameters()

    def active_parameters(self) -> int:
        """Trained numbers that predict one token: all but idle experts and the modules that predict further tokens."""
        return self._main(self.experts_per_token)

    def mtp_parameters(self) -> int:
        """Trained numbers of the modules that predict further tokens."""
        return sum(self._mtp_module(module, self.experts) for module in range(self.mtp_layers))

    def flops_per_token(self, sequence_length: int) -> float:
        """Floating-point operations of one training token, forward and backward, as `flops_formula` says."""
        active = self.active_parameters() - (0 if self.tie_embeddings else self.vocab_size * self.width)
        heads = 3.0 * self.heads * (self.head_dim + self.value_dim) * sequence_length
        further = sum(
            6.0 * (self._mtp_module(module, self.experts_per_token) + self.vocab_size * self.width) + heads
            for module in range(self.mtp_layers)
        )
        return 6.0 * active + self.layers * heads + further

    def flops_formula(self) -> str:
        """The formula of `flops_per_token`, for people.

        A tied table is a look-up and one product, so it is counted once; attention's two products are counted at the
        causal half (2 * 2 * T / 2 per head number forward, three times that with backward); a prediction module is
        counted with its product over the vocabulary.
        """
        table = "" if self.tie_embeddings else " - embedding table"
        further = " + mtp_layers * (6 * (module + vocab * width) + attention of a layer)" if self.mtp_layers else ""
        return f"6 * (active parameters{table}) + layers * 3 * heads * (head_dim + value_dim) * T{further}"

    def _main(self, experts: int) -> int:
        embeddings = self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
        return embeddings + self.width + sum(self._layer(layer, experts) for layer in range(self.layers))

    def _layer(self, layer: int, experts: int) -> int:
        """Numbers of a layer of which `experts` routed experts are counted."""
        outside = 2 * self.width + self._attention()
        if not self.has_experts(layer):
            return outside + 3 * self.width * self.ffn_width
        gate = self.width if self.shared_gate else 0
        each = 3 * self.width * self.expert_width
        return outside + self.experts * self.width + experts * each + 3 * self.width * self.shared_hidden + gate

    def _mtp_module(self, module: int, experts: int) -> int:
        """Numbers of one prediction module: a layer, three norms and the projection of two vectors to one."""
        return self._layer(self.layers + module, experts) + 3 * self.width + 2 * self.width * self.width

    def _attention(self) -> int:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        output = self.heads * self.value_dim * self.width
        if (mla := self.mla) is None:
            norms = {"none": 0, "head": 2 * self.head_dim, "full": queries + keys}[self.qk_norm]
            bias = queries + 2 * keys if self.qkv_bias else 0
            return self.width * (queries + 2 * keys) + output + norms + bias
        from_width = self.width * queries if mla.q_rank is None else mla.q_rank * (self.width + 1 + queries)
        latent = self.width * (mla.kv_rank + mla.rope_dim) + mla.kv_rank
        expand = mla.kv_rank * self.heads * (self.head_dim - mla.rope_dim + mla.value_dim)
        return from_width + latent + expand + output

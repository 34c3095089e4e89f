"""Molmo computed a second time: in float64, from the published tensors, one token and one window at a time.

Nothing here is shared with the model: loops over rows, heads, experts and windows stand where it has batched tensors,
and there is no cache. Padding is left out of the computation instead of being masked.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float64]


def _softmax(scores: Array) -> Array:
    raised: Array = np.exp(scores - scores.max())
    shares: Array = raised / raised.sum()
    return shares


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


@dataclass(frozen=True)
class NaiveMolmo:
    """A checkpoint and what its configuration says.

    Attributes:
        weights: published name to tensor.
        entries: of `config.json`.
        kept: text blocks that run, in order.
        skipped_vision: blocks of the vision tower that do not run.
    """

    weights: dict[str, Array]
    entries: dict[str, Any]
    kept: tuple[int, ...]
    skipped_vision: tuple[int, ...] = ()

    def _get(self, *names: str) -> Any:
        return next(self.entries[name] for name in names if self.entries.get(name) is not None)

    # ------------------------------------------------------------ vision

    def _layer_norm(self, name: str, x: Array) -> Array:
        centred: Array = x - x.mean()
        scaled: Array = centred / np.sqrt((centred**2).mean() + 1e-5) * self.weights[f"{name}.weight"]
        return scaled + self.weights[f"{name}.bias"]

    def _linear(self, name: str, x: Array) -> Array:
        return self.weights[f"{name}.weight"] @ x + self.weights.get(f"{name}.bias", 0.0)

    def _attend(self, name: str, query: Array, memory: list[Array]) -> Array:
        heads = self.entries["vision_backbone"]["image_num_heads"]
        q = self._linear(f"{name}.wq", query).reshape(heads, -1)
        k = [self._linear(f"{name}.wk", x).reshape(heads, -1) for x in memory]
        v = [self._linear(f"{name}.wv", x).reshape(heads, -1) for x in memory]
        mixed = []
        for head in range(heads):
            weights = _softmax(np.array([q[head] @ key[head] for key in k]) / np.sqrt(q.shape[1]))
            mixed.append(sum(w * value[head] for w, value in zip(weights, v, strict=True)))
        return self._linear(f"{name}.wo", np.concatenate(mixed))

    def tower(self, crop: Array) -> list[Array]:
        """Features of each patch of one crop (patches, patch_values)."""
        vit = "model.vision_backbone.image_vit"
        tokens = [self.weights[f"{vit}.class_embedding"]]
        tokens += [self.weights[f"{vit}.patch_embedding.weight"] @ patch for patch in crop]
        places = self.weights[f"{vit}.positional_embedding"]
        tokens = [self._layer_norm(f"{vit}.pre_ln", x + places[i]) for i, x in enumerate(tokens)]
        history = []
        for block in range(self.entries["vision_backbone"]["image_num_layers"]):
            name = f"{vit}.transformer.resblocks.{block}"
            if block not in self.skipped_vision:
                normed = [self._layer_norm(f"{name}.attention_norm", x) for x in tokens]
                tokens = [x + self._attend(f"{name}.attention", n, normed) for x, n in zip(tokens, normed, strict=True)]
                for i, x in enumerate(tokens):
                    inner = self._linear(f"{name}.feed_forward.w1", self._layer_norm(f"{name}.ffn_norm", x))
                    tokens[i] = x + self._linear(f"{name}.feed_forward.w2", inner * _sigmoid(1.702 * inner))
            history.append(list(tokens))
        chosen = [history[layer] for layer in self.entries["vit_layers"]]
        return [np.concatenate([states[i] for states in chosen]) for i in range(1, len(tokens))]

    def image_tokens(self, crop: Array, mask: Array | None) -> list[Array]:
        """Image tokens of one crop, ready to be added."""
        backbone = "model.vision_backbone"
        if "moe_num_experts" in self.entries:
            is_picture = bool((crop != -1).all())
        else:
            is_picture = bool((crop != -1).any())
        features = [x * is_picture for x in self.tower(crop)]
        for i, x in enumerate(features):
            if mask is not None and mask[i] == 0:
                features[i] = x + self.weights[f"{backbone}.pad_embed"][0]
            elif mask is not None and mask[i] < 1:
                features[i] = x + self.weights[f"{backbone}.pad_embed"][1]
        height, width = self.entries["vision_backbone"]["image_default_input_size"]
        side = self.entries["vision_backbone"]["image_patch_size"]
        rows, columns = height // side, width // side
        nothing = np.zeros_like(features[0])
        tokens = []
        for row in range(0, rows, 2):
            for column in range(0, columns, 2):
                places = [(row + dh, column + dw) for dh in (0, 1) for dw in (0, 1)]
                window = [features[r * columns + c] if r < rows and c < columns else nothing for r, c in places]
                pooled = self._attend(f"{backbone}.image_pooling_2d", np.mean(window, axis=0), window)
                gate = _silu(self.weights[f"{backbone}.image_projector.w1.weight"] @ pooled)
                up = self.weights[f"{backbone}.image_projector.w3.weight"] @ pooled
                tokens.append(self.weights[f"{backbone}.image_projector.w2.weight"] @ (gate * up))
        return tokens

    # ------------------------------------------------------------ text

    def _rms(self, name: str, x: Array) -> Array:
        normed: Array = x / np.sqrt((x**2).mean() + self.entries["layer_norm_eps"]) * self.weights[name]
        return normed

    def _rotate(self, head: Array, position: int) -> Array:
        half = len(head) // 2
        angles = position * self.entries["rope_theta"] ** (-np.arange(half) / half)
        first, second = head[:half], head[half:]
        return np.concatenate(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
        )

    def _text_attention(self, name: str, states: list[Array]) -> list[Array]:
        """Causal attention of one row, from what enters it to what leaves its output projection."""
        num_heads = self._get("num_attention_heads", "n_heads")
        num_kv = self.entries.get("num_key_value_heads") or num_heads
        size = len(states[0])
        head_dim = size // num_heads
        queries, keys, values = [], [], []
        for position, x in enumerate(states):
            fused = self._linear(f"{name}.att_proj", x)
            q, k, v = np.split(fused, [size, size + num_kv * head_dim])
            if f"{name}.q_norm.weight" in self.weights:
                q, k = self._rms(f"{name}.q_norm.weight", q), self._rms(f"{name}.k_norm.weight", k)
            queries.append([self._rotate(head, position) for head in q.reshape(num_heads, head_dim)])
            keys.append([self._rotate(head, position) for head in k.reshape(num_kv, head_dim)])
            values.append(v.reshape(num_kv, head_dim))
        outputs = []
        for i in range(len(states)):
            mixed = []
            for head in range(num_heads):
                group = head // (num_heads // num_kv)
                scores = np.array([queries[i][head] @ keys[j][group] for j in range(i + 1)]) / np.sqrt(head_dim)
                mixed.append(sum(w * values[j][group] for j, w in enumerate(_softmax(scores))))
            outputs.append(self._linear(f"{name}.attn_out", np.concatenate(mixed)))
        return outputs

    def _dense(self, name: str, x: Array) -> Array:
        up, gate = np.split(self._linear(f"{name}.ff_proj", x), 2)
        return self._linear(f"{name}.ff_out", _silu(gate) * up)

    def _experts(self, name: str, x: Array) -> Array:
        shares = _softmax(self._linear(f"{name}.gate", x))
        output = np.zeros_like(x)
        for expert in np.argsort(-shares)[: self.entries["moe_top_k"]]:
            own = f"{name}.experts.{expert}"
            inner = _silu(self._linear(f"{own}.gate_proj", x)) * self._linear(f"{own}.up_proj", x)
            output += shares[expert] * self._linear(f"{own}.down_proj", inner)
        return output

    def _block(self, block: int, states: list[Array]) -> list[Array]:
        name = f"model.transformer.blocks.{block}"
        if "moe_num_experts" in self.entries:
            normed = [self._rms(f"{name}.attn.attn_norm.weight", x) for x in states]
            states = [x + a for x, a in zip(states, self._text_attention(f"{name}.attn", normed), strict=True)]
            return [x + self._experts(f"{name}.mlp", self._rms(f"{name}.mlp.ff_norm.weight", x)) for x in states]
        if self.entries["norm_after"]:
            attended = self._text_attention(name, states)
            states = [x + self._rms(f"{name}.attn_norm.weight", a) for x, a in zip(states, attended, strict=True)]
            return [x + self._rms(f"{name}.ff_norm.weight", self._dense(name, x)) for x in states]
        normed = [self._rms(f"{name}.attn_norm.weight", x) for x in states]
        states = [x + a for x, a in zip(states, self._text_attention(name, normed), strict=True)]
        return [x + self._dense(name, self._rms(f"{name}.ff_norm.weight", x)) for x in states]

    def row(
        self,
        tokens: list[int],
        images: Array | None = None,
        image_masks: Array | None = None,
        image_input_idx: NDArray[np.int64] | None = None,
    ) -> dict[int, Array]:
        """Logits of one sample, by column of `tokens`; -1 is padding and has none."""
        table = np.concatenate(
            [self.weights["model.transformer.wte.embedding"], self.weights["model.transformer.wte.new_embedding"]]
        )
        states = {column: table[token].copy() for column, token in enumerate(tokens) if token != -1}
        if images is not None and image_input_idx is not None:
            for crop in range(len(images)):
                places = image_input_idx[crop]
                if (places < 0).all():
                    continue
                mask = None if image_masks is None else image_masks[crop]
                for place, token in zip(places, self.image_tokens(images[crop], mask), strict=True):
                    if place >= 0:
                        states[int(place)] += token
        columns, values = list(states), list(states.values())
        for block in self.kept:
            values = self._block(block, values)
        head = "lm_head.weight" if "lm_head.weight" in self.weights else "model.transformer.ff_out.weight"
        final = [self.weights[head] @ self._rms("model.transformer.ln_f.weight", x) for x in values]
        return dict(zip(columns, final, strict=True))


def read_naive_molmo(folder: Path, kept: tuple[int, ...] | None = None) -> NaiveMolmo:
    """Read a checkpoint of one file; `kept` are the text blocks that run, all of them when None."""
    entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
    num_blocks = entries.get("num_hidden_layers") or entries["n_layers"]
    return NaiveMolmo(weights, entries, tuple(range(num_blocks)) if kept is None else kept)

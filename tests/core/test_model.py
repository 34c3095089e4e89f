"""What a manifest says of a model: text models as they always did, pictures where there are some."""

from blockexport.core.model import ModelSpec, VisionSpec

TEXT = {"name": "a", "architecture": "B", "kind": "decoder", "num_blocks": 3, "digest": "0" * 64}
VISION = VisionSpec(
    num_blocks=4, block_path="tower.blocks", image_shape=(9, 12), mask_shape=(9,), num_pooled=4, hidden_size=8
)


def test_what_a_model_does_not_have_is_not_named():
    written = ModelSpec(**TEXT).to_json()
    assert set(written) == set(TEXT) | {
        "block_path",
        "kv",
        "vocab_size",
        "context_tokens",
        "image_shape",
        "output",
        "stop_tokens",
        "pad_token",
    }
    assert ModelSpec(**written) == ModelSpec(**TEXT)


def test_pictures_are_named():
    spec = ModelSpec(**TEXT, num_extra_tokens=5, vision=VISION)
    written = spec.to_json()
    assert written["vision"]["num_pooled"] == 4
    assert written["num_extra_tokens"] == 5
    assert ModelSpec(**written) == spec
    assert "grid" not in written["vision"]
    counted = spec.model_copy(update={"vision": VISION.model_copy(update={"grid": (2, 2)})})
    assert ModelSpec(**counted.to_json()) == counted

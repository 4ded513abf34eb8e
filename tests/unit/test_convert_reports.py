"""`hilum import flexict` of volumes and reports, with a small tower of the published layout. A module of its
own: importing transformers takes longer than the test.
"""

import torch
from _public_layouts import EMBEDDING, text_folder, with_reports
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoModel, Qwen3Config

from hilum.convert.run import import_encoder
from hilum.io.encoder_file import load_encoder
from hilum.model.encoder import build_encoder, load_tensors, unit

QWEN = {
    "model_type": "qwen3", "vocab_size": 40, "hidden_size": EMBEDDING, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 64,
}  # fmt: skip


def test_both_embeddings_are_the_published_ones(tmp_path):
    torch.manual_seed(0)
    qwen = AutoModel.from_config(Qwen3Config(**QWEN)).eval()
    state = with_reports(qwen.state_dict())
    source = tmp_path / "a.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, source)
    tower = text_folder(tmp_path / "tower", QWEN)
    report = import_encoder("flexict", source, tmp_path / "out", text=tower)
    assert {name for row in report.rows for name in row.sources} == set(state)
    file = load_encoder(tmp_path / "out")
    encoder = build_encoder(file.config).eval()
    load_tensors(encoder, {name: torch.from_numpy(tensor) for name, tensor in file.tensors.items()})

    # as the public wrapper has it: padding on the left, the last token, length 1
    ids = torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :2] = False
    volume = torch.randn(1, 1, 8, 8, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden = qwen(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        theirs, ours = F.normalize(hidden[:, -1], dim=-1), unit(encoder.text(ids, mask))
        out = encoder.vision(volume)
        joint = torch.cat([out.cls, out.patches.mean(dim=1)], dim=-1)
        scan = F.normalize(joint @ state["vlm_vision_projection.weight"].T, dim=-1)
        assert torch.allclose(theirs, ours, atol=1e-5)
        assert torch.allclose(scan, encoder.image_embedding(out), atol=1e-5)
        scale = state["logit_scale"].exp()
        assert torch.allclose(scale * scan @ theirs.T, encoder.temperature() * scan @ ours.T, atol=1e-3)

import pytest
import torch
import torch.nn.functional as F

from mirl_study.network import (
    PRUNABLE_KINDS,
    Attention,
    Block,
    FeedForward,
    Prompt,
    build_network,
    describe,
    fingerprint,
)
from mirl_study.settings import PRESETS, NetworkSettings, SettingsError


def test_the_papers_size_counts_as_the_paper_counts():
    table = describe(build_network("paper"))
    size = table.groupby("kind")["size"].sum()
    assert table["size"].sum() == 35_592_263
    assert size["prompt"] == 2_375_680 and size["bias"] == 17_359 and size["temperature"] == 160
    assert size["norm"] == 17_344 and (table.kind == "norm").sum() == 94
    assert size["unused"] == 215_296 and (table.kind == "unused").sum() == 6
    weights = table[table.kind.isin({*PRUNABLE_KINDS, "norm", "unused"})]
    assert (len(weights), weights["size"].sum()) == (401, 33_199_064)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_has_exactly_one_kind(preset):
    network = build_network(preset)
    table = describe(network)
    assert list(table.name) == [name for name, _ in network.named_parameters()]
    assert set(table.kind) <= {*PRUNABLE_KINDS, "norm", "unused", "prompt", "bias", "temperature"}


@pytest.mark.parametrize("dim", [4, 8, 12, 20])
def test_every_width_runs_and_uses_all_but_the_unused(dim):
    settings = NetworkSettings(
        dim=dim, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 2, 2), prompt_size=8, unused=True
    )
    network = build_network(settings)
    images = torch.rand(2, 3, 24, 40)
    restored = network(images)
    assert restored.shape == images.shape
    restored.square().mean().backward()
    table = describe(network)
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert idle == set(table.name[table.kind == "unused"])


def test_initialisation_is_a_function_of_settings_and_seed():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = (fingerprint(build_network("pico", seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state()), "building a network must not touch the global generator"


def test_an_unknown_preset_is_named():
    with pytest.raises(SettingsError, match="did you mean 'paper'"):
        build_network("papper")


# The fast forms inside the network, against a plain restatement of the definitions on (B, C, H, W).


def plain_norm(norm, x):
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt() * norm.body.weight.view(1, -1, 1, 1) + norm.body.bias.view(1, -1, 1, 1)


def plain_attention(layer, x):
    batch, channels, height, width = x.shape
    qkv = F.conv2d(F.conv2d(x, layer.qkv.weight), layer.qkv_dwconv.weight, padding=1, groups=3 * channels)
    q, k, v = (t.reshape(batch, layer.heads, channels // layer.heads, height * width) for t in qkv.chunk(3, dim=1))
    attention = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * layer.temperature).softmax(dim=-1)
    return F.conv2d((attention @ v).reshape(batch, channels, height, width), layer.project_out.weight)


def plain_feed_forward(layer, x):
    hidden = F.conv2d(x, layer.project_in.weight)
    gate, value = F.conv2d(hidden, layer.dwconv.weight, padding=1, groups=hidden.shape[1]).chunk(2, dim=1)
    return F.conv2d(F.gelu(gate) * value, layer.project_out.weight)


def plain_prompt(layer, x):
    weights = layer.linear_layer(x.mean(dim=(-2, -1))).softmax(dim=-1)
    repeated = layer.prompt_param.repeat(len(x), 1, 1, 1, 1)
    prompt = F.interpolate((weights[:, :, None, None, None] * repeated).sum(1), x.shape[-2:], mode="bilinear")
    return F.conv2d(prompt, layer.conv3x3.weight, padding=1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_fast_forms_equal_the_definitions(heads):
    torch.manual_seed(0)
    x = torch.randn(3, 8, 10, 12)
    nhwc = x.permute(0, 2, 3, 1)
    attention, feed, prompt = Attention(8, heads), FeedForward(8, 2.66), Prompt(8, 12, 5, 4)
    torch.nn.init.uniform_(attention.temperature, 0.5, 2)
    for fast, plain in ((attention, plain_attention), (feed, plain_feed_forward), (prompt, plain_prompt)):
        assert torch.allclose(fast(nhwc).permute(0, 3, 1, 2), plain(fast, x), atol=1e-5)

    block = Block(8, heads, 2.66)
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.body.weight)
        torch.nn.init.normal_(norm.body.bias)
    inner = x + plain_attention(block.attn, plain_norm(block.norm1, x))
    outer = inner + plain_feed_forward(block.ffn, plain_norm(block.norm2, inner))
    assert torch.allclose(block(nhwc).permute(0, 3, 1, 2), outer, atol=1e-5)


def test_a_fully_pruned_output_layer_makes_the_network_the_identity():
    network = build_network("pico")
    torch.nn.init.zeros_(network.output.weight)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(network(images), images)

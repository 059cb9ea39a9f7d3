"""Tickets on disk: what is written is read, what is damaged is refused by name, and nothing in a file is run."""

import dataclasses
import json
import math
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mirl_study import SettingsError, Ticket, cli, load_settings, lottery, tickets
from mirl_study.analysis import open_run
from mirl_study.masks import Mask, dense_mask, kind_of
from mirl_study.network import PromptIR, build_network, describe, fingerprint
from mirl_study.settings import ONE_SHOT, PRESETS
from mirl_study.tickets import CHECKS, TicketError, beside

SMOKE = load_settings("smoke")
NAME = "a.ticket.safetensors"


def random_mask(seed: int, density: float, whole: Mask | None = None) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    whole = whole or dense_mask(SMOKE)
    return Mask({name: torch.rand(t.shape, generator=generator) < density for name, t in whole.items()})


def made(seed: int = 0, density: float = 0.3, **more) -> Ticket:
    """A ticket without a run."""
    own = SMOKE.replace(seed=seed)
    start = fingerprint(build_network(own.network, seed))
    return Ticket(own, "MIR-L-G", 2, random_mask(seed, density), "initialisation", start, **more)


def trained(ticket: Ticket) -> Ticket:
    """The same with weights: anything, but zero where the mask is."""
    network = build_network(ticket.settings.network, 99)
    ticket.mask.apply_(dict(network.named_parameters()))
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return dataclasses.replace(ticket, weights=weights, weights_sha256=fingerprint(network))


def rewritten(path: Path, change, honest: bool = True) -> None:
    """Rewrites a ticket with a change of its content, its hash with it if `honest`."""
    with safe_open(path, "np") as file:
        header, packed = json.loads(file.metadata()["mirl_ticket"]), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    change(header, packed)
    if honest:
        header["sha256"] = tickets._digest(header["content"], packed)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(bits)) for name, bits in packed.items()}
    path.write_bytes(safetensors.torch.save(tensors, {"mirl_ticket": json.dumps(header)}))


@pytest.fixture
def path(tmp_path) -> Path:
    made().save(tmp_path / NAME)
    return tmp_path / NAME


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.floats(0, 1),
    scores=st.dictionaries(
        st.sampled_from(["derain", "dehaze"]), st.dictionaries(st.sampled_from(["psnr", "ssim"]), st.floats())
    ),
    weights=st.booleans(),
)
def test_what_is_written_is_read(seed, density, scores, weights):
    ticket = made(seed, density, scores=scores, provenance={"commit": "é", "versions": {"torch": "2"}})
    ticket = trained(ticket) if weights else ticket
    with tempfile.TemporaryDirectory() as folder:
        ticket.save(Path(folder) / NAME)
        first = (Path(folder) / NAME).read_bytes()
        back = Ticket.load(Path(folder) / NAME)
        back.save(Path(folder) / NAME)
        assert (Path(folder) / NAME).read_bytes() == first
        assert sorted(os.listdir(folder)) == [NAME, "a.weights.safetensors"][: 1 + weights]
    if not any(math.isnan(value) for row in scores.values() for value in row.values()):
        assert back == ticket
    assert list(back.mask) == list(ticket.mask) and back.mask.fingerprint == ticket.mask.fingerprint
    for kind in [False, True][: 1 + weights]:
        ours, theirs = (dict(t.network(trained=kind).named_parameters()) for t in (ticket, back))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_bit_a_weight_and_others_can_read_it(path):
    ticket = Ticket.load(path)
    with safe_open(path, "np") as file:
        content = json.loads(file.metadata()["mirl_ticket"])["content"]
        for name, shape in content["tensors"]:
            bits = np.unpackbits(file.get_tensor(name), count=math.prod(shape)).reshape(shape)
            assert (bits == ticket.mask[name].numpy()).all()
    assert path.stat().st_size < ticket.mask.size / 8 + 20_000
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_each_round_gives_its_ticket(smoke_results, scope, tmp_path):
    for played in lottery.rounds(load_settings("smoke", scope=scope), smoke_results, "cpu", show=False):
        ticket = played.ticket
        assert (ticket.origin, ticket.mask, ticket.index, ticket.seed) == (
            "initialisation",
            played.mask,
            played.index,
            0,
        )
        assert ticket.scores == played.scores.to_dict("index")
        assert ticket.provenance["versions"]["torch"] == torch.__version__ and ticket.provenance["data_fingerprint"]
        ticket.save(tmp_path / NAME)
        back = Ticket.load(tmp_path / NAME)
        assert back == ticket and (back.weights is None) == (played.index not in SMOKE.keep_weights)
        for kind in [False, True][: 1 + (back.weights is not None)]:
            assert fingerprint(back.network(kind)) == fingerprint(played.network(kind))
        assert all(check(back)[0] for check in CHECKS[:2])


def test_a_one_shot_ticket_knows_its_start_by_hash_alone(smoke_results, tmp_path):
    ticket = lottery.one_shot(SMOKE, next(iter(ONE_SHOT)), smoke_results, "cpu", show=False).ticket
    dense = lottery.dense_round(SMOKE, smoke_results, "cpu", show=False)
    assert ticket.origin == "elsewhere" and ticket.start_sha256 == fingerprint(dense.network())
    ticket.save(tmp_path / NAME)
    assert fingerprint(Ticket.load(tmp_path / NAME).network()) == fingerprint(ticket.network())
    with pytest.raises(TicketError, match=r"hash alone: it cannot be rewound"):
        ticket.network(trained=False)


@pytest.mark.parametrize(
    ("change", "kinds"),
    [({"rewind": "weights"}, {"prompt", "temperature"}), ({"rewind_step": 2}, None)],
    ids=["carried over", "late"],
)
def test_a_start_that_no_seed_gives_lies_beside(smoke_results, tmp_path, change, kinds):
    own = load_settings("smoke", rounds=1, **change)
    shutil.copytree(smoke_results / "smoke" / "all_in_one" / "dense", tmp_path / "smoke" / "all_in_one" / "dense")
    *_, played = lottery.rounds(own, tmp_path, "cpu", show=False)
    ticket = played.ticket
    assert ticket.origin == "changed"
    if kinds:
        assert {kind_of(name) for name in ticket.start} == kinds
    place = tmp_path / NAME
    ticket.save(place)
    back = Ticket.load(place)
    assert fingerprint(back.network(trained=False)) == fingerprint(played.network(trained=False))
    assert CHECKS[1](back) == (True, f"start: {tickets.ORIGINS['changed']} (0), built again, has its sha256")
    values = {name: tensor + 1 for name, tensor in ticket.start.items()}
    safetensors.torch.save_file(values, beside(place, "start"))
    with pytest.raises(TicketError, match=r"a\.ticket\.safetensors: start: .* has sha256"):
        Ticket.load(place)
    beside(place, "start").unlink()
    with pytest.raises(TicketError, match=r"does not lie beside it \(NAME\.start"):
        Ticket.load(place).network(trained=False)
    for name in ("rewind.safetensors", "round01/carried.safetensors"):
        (played.run.folder / name).unlink(missing_ok=True)
    assert played.ticket.origin == "elsewhere", "records without tensors: the hash alone"


def test_a_run_of_another_initialisation_gives_no_ticket(smoke_results, tmp_path):
    folder = tmp_path / "smoke" / "all_in_one" / "MIR-L-G" / "seed0"
    shutil.copytree(smoke_results / "smoke" / "all_in_one" / "MIR-L-G" / "seed0", folder)
    record = folder / "round01" / "round.json"
    played = lottery.load_round(open_run(folder), 1)
    record.write_text(json.dumps({**json.loads(record.read_text()), "start_sha256": "0" * 64}))
    with pytest.raises(TicketError, match=r"round\.json names a start with sha256 000"):
        _ = played.ticket
    record.write_text("{")
    with pytest.raises(TicketError, match=r"round\.json or the run\.json of its run is damaged"):
        _ = played.ticket
    kept = lottery.load_round(open_run(folder), 2)
    (folder / "round02" / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(TicketError, match=r"weights\.safetensors is damaged"):
        _ = kept.ticket


def content(**new):
    return lambda header, packed: header["content"].update(new)


def change_setting(name, value):
    return lambda header, packed: header["content"]["settings"].update({name: value})


def drop_tensor(header, packed):
    packed.pop(header["content"]["tensors"].pop()[0])


def shorter(header, packed):
    name = header["content"]["tensors"][1][0]
    packed[name] = packed[name][:-1]


def other_order(header, packed):
    header["content"]["tensors"][0][1] = header["content"]["tensors"][0][1][::-1]


SEED = r"start: the initialisation of its network and seed \(1\) has sha256 \w+, not \w+"
ALTERED = "has not the sha256 that it says: damaged, or altered"
EDITS = {  # (change, whether the hash is made to fit, what is said)
    "seed edited": (change_setting("seed", 1), False, ALTERED),
    "seed edited, hash too": (change_setting("seed", 1), True, SEED),
    "score edited": (content(scores={"derain": {"psnr": 50.0}}), False, ALTERED),
    "mask edited": (lambda header, packed: next(iter(packed.values())).__ixor__(1), False, ALTERED),
    "next version": (
        lambda header, packed: header.update(version=2),
        True,
        "of version 2; this program reads version 1",
    ),
    "no version": (lambda header, packed: header.pop("version"), True, "is not a ticket, or damaged: 'version'"),
    "content lacks a part": (lambda header, packed: header["content"].pop("round"), True, "'round'"),
    "content is a list": (lambda header, packed: header.update(content=[], sha256=""), False, "list indices"),
    "unknown method": (content(method="MIR-L-H"), True, r"method='MIR-L-H' is not one of .*did you mean 'MIR-L-G'"),
    "unknown origin": (content(origin="seed"), True, "origin='seed' is not one of"),
    "value not allowed": (change_setting("rate", 2.0), True, "rate=2.0 is not allowed"),
    "other network": (change_setting("network", {"preset": "nano"}), True, r"mask does not fit .* has shape"),
    "norms prunable": (change_setting("prune_norms", True), True, "mask does not fit .* is missing"),
    "a tensor less": (drop_tensor, True, r"mask does not fit .*output\.weight is missing \(1 of"),
    "a tensor unlisted": (lambda h, p: p.update(x=np.zeros(1, np.uint8)), True, "tensors are not those of its list"),
    "a byte less": (shorter, True, "mask of .* is uint8 .*, not the bits of"),
    "a shape turned": (other_order, True, r"mask does not fit .* has shape"),
    "a shape that is no shape": (content(tensors=[["x", [-8]]]), False, "is damaged: KeyError: 'x'"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_ticket_is_refused_by_name(path, edit):
    change, honest, words = EDITS[edit]
    rewritten(path, change, honest)
    with pytest.raises(TicketError, match=words) as error:
        Ticket.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


class Sprung:
    """Unpickled, it leaves a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def header_of(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("a ticket"),
    "cut in the magic": lambda path: path.write_bytes(path.read_bytes()[:5]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "cut after the header": lambda path: path.write_bytes(path.read_bytes()[: 8 + header_of(path)]),
    "cut by one byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "header of 2^60 bytes": lambda path: path.write_bytes((2**60).to_bytes(8, "little") + path.read_bytes()[8:]),
    "no ticket in it": lambda path: safetensors.torch.save_file({"x": torch.ones(2)}, path),
    "its JSON broken": lambda path: path.write_bytes(safetensors.torch.save({}, {"mirl_ticket": '{"version": 1,'})),
    "its JSON deep": lambda path: path.write_bytes(safetensors.torch.save({}, {"mirl_ticket": "[" * 100_000})),
    "its JSON a number": lambda path: path.write_bytes(safetensors.torch.save({}, {"mirl_ticket": "1"})),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Sprung(path.with_name("sprung")))),
    "a checkpoint with code": lambda path: torch.save({"state_dict": Sprung(path.with_name("sprung"))}, path),
    "a mask file": lambda path: made().mask.save(path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name_and_never_run(path, damage, capsys):
    DAMAGES[damage](path)
    with pytest.raises(TicketError, match="is not a ticket, or damaged") as error:
        Ticket.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(path.parent) == [NAME]
    assert mirl(capsys, "verify", path)[0] == 1


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), whole=st.booleans())
def test_no_byte_can_be_changed_unnoticed(place, flip, whole):
    ticket = made()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        ticket.save(path)
        data = bytearray(path.read_bytes())
        size = len(data) if whole else 8 + header_of(path)
        data[int(place * size)] ^= flip
        path.write_bytes(data)
        try:
            assert Ticket.load(path) == ticket  # white space between the parts of the header says nothing
        except TicketError as error:
            assert str(path) in str(error)


def of_another(place: Path) -> None:
    trained(made(seed=5)).save(place.with_name("b.ticket.safetensors"))
    beside(place.with_name("b.ticket.safetensors"), "weights").replace(beside(place, "weights"))


def edited(change):
    def edit(place: Path) -> None:
        file = beside(place, "weights")
        tensors = safetensors.torch.load_file(file)
        change(tensors)
        safetensors.torch.save_file(tensors, file)

    return edit


WEIGHTS = {
    "of another ticket": (of_another, "weights: have sha256"),
    "cut short": (lambda p: os.truncate(beside(p, "weights"), 100), r"a\.weights\.safetensors beside it is damaged"),
    "a value changed": (edited(lambda t: t["output.weight"].view(-1)[:1].add_(1)), "weights: have sha256"),
    "one missing": (edited(lambda t: t.pop("output.weight")), r"output\.weight is missing \(1 of"),
    "one renamed": (
        edited(lambda t: t.update({"outpu.weight": t.pop("output.weight")})),
        "did you mean 'output.weight'",
    ),
    "of another shape": (edited(lambda t: t.update({"output.weight": torch.zeros(3, 3)})), r"has shape \(3, 3\)"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_not_the_ticket_s_are_refused(tmp_path, case):
    damage, words = WEIGHTS[case]
    trained(made()).save(tmp_path / NAME)
    damage(tmp_path / NAME)
    with pytest.raises(TicketError, match=words):
        Ticket.load(tmp_path / NAME)


def test_weights_under_another_mask_are_refused(tmp_path):
    ticket = dataclasses.replace(trained(made()), mask=random_mask(1, 0.3))
    ticket.save(tmp_path / NAME)
    with pytest.raises(TicketError, match="is not zero where the mask is"):
        Ticket.load(tmp_path / NAME)


def test_a_ticket_without_its_weights_is_still_one(tmp_path):
    trained(made()).save(tmp_path / NAME)
    beside(tmp_path / NAME, "weights").unlink()
    back = Ticket.load(tmp_path / NAME)
    back.network(trained=False)
    with pytest.raises(TicketError, match=r"do not lie beside it \(NAME\.weights"):
        back.network()
    with pytest.raises(TicketError, match="were not kept"):
        made().network()


def test_saving_is_all_or_nothing(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        trained(made(1)).save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [NAME]


def test_the_path_of_the_images_stays_at_home(smoke_results):
    played = lottery.dense_round(SMOKE, smoke_results, "cpu", show=False)
    run = lottery.Run(SMOKE.replace(data="/home/somebody/images"), "dense", smoke_results)
    ticket = Ticket.of(run, 0, played.mask, played.scores, None)
    assert ticket.settings.data == "images"


@pytest.mark.parametrize("preset", PRESETS)
def test_kinds_are_told_from_names(preset):
    with torch.device("meta"):
        table = describe(PromptIR(PRESETS[preset]))
    assert [kind_of(name) for name in table["name"]] == list(table["kind"])


def test_density_by_kind_and_layer():
    mask = random_mask(0, 0.3)
    assert mask.density(by="layer") == {n.removesuffix(".weight"): d for n, d in mask.densities().items()}
    counts = mask.counts("kind")
    assert tuple(map(sum, zip(*counts.values(), strict=True))) == (mask.kept, mask.size)
    qkv = [tensor for name, tensor in mask.items() if name.endswith("qkv.weight")]
    assert mask.density(by="kind")["qkv"] == sum(map(int, map(torch.sum, qkv))) / sum(t.numel() for t in qkv)
    with pytest.raises(SettingsError, match=r"by='kid' is not one of kind, layer \(did you mean 'kind'"):
        mask.density(by="kid")


def mirl(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(["ticket", *map(str, words)])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_show_says_what_the_records_say(capsys, smoke_results):
    folder = smoke_results / "smoke" / "all_in_one" / "MIR-L-G" / "seed0"
    code, out, err = mirl(capsys, "show", folder, "--round", 1)
    facts = json.loads((folder / "round01" / "round.json").read_text())
    assert (code, err) == (0, "")
    for words in (
        "MIR-L-G, all_in_one, round 1, seed 0 (profile smoke",
        f"{facts['kept']:,} of {facts['prunable']:,} prunable weights kept, density {facts['density']:.4f}",
        facts["start_sha256"],
        Mask.load(folder / "round01" / "mask.npz").fingerprint,
    ):
        assert words in out
    assert any(line.split()[:1] == ["qkv"] for line in out.splitlines())
    assert any(line.split()[:1] == ["derain"] for line in out.splitlines())
    assert "round 2" in mirl(capsys, "show", folder)[1], "the last round, if none is named"


def test_out_of_a_run_and_back(capsys, smoke_results, tmp_path):
    folder = smoke_results / "smoke" / "all_in_one" / "MIR-L-G" / "seed0"
    ticket, plain = tmp_path / NAME, tmp_path / "plain.safetensors"
    assert mirl(capsys, "export", folder, "--to", ticket) == (0, f"{ticket}\n", "")
    for place, checks in ((ticket, 4), (folder, 8)):
        code, out, _ = mirl(capsys, "verify", place)
        assert code == 0 and [line[:2] for line in out.splitlines()] == ["OK"] * checks
    assert mirl(capsys, "export", ticket, "--to", plain, "--rewound")[0] == 0
    start = Ticket.load(ticket).network(trained=False).state_dict()
    found = safetensors.torch.load_file(plain)
    assert found.keys() == start.keys() and all(torch.equal(found[name], start[name]) for name in start)
    code, _, err = mirl(capsys, "export", ticket, "--to", plain)
    assert code == 2 and "exists already and is never overwritten" in err


def test_verify_names_what_failed(capsys, tmp_path):
    place = tmp_path / NAME
    trained(made()).save(place)
    rewritten(place, change_setting("seed", 1))
    edited(lambda t: t["output.weight"].zero_())(place)
    code, out, err = mirl(capsys, "verify", place)
    assert code == 1 and err.strip() == f"error: {place}: 2 problems"
    assert [line[:4] for line in out.splitlines()] == ["OK  ", "OK  ", "FAIL", "FAIL"]
    rewritten(place, change_setting("seed", 2), honest=False)
    code, out, err = mirl(capsys, "verify", place)
    assert code == 1 and out.startswith("FAIL") and "damaged, or altered" in out and "1 problem" in err


def test_weights_are_no_ticket_and_the_way_out_is_named(capsys, smoke_results, tmp_path):
    trained(made()).save(tmp_path / NAME)
    assert f"give {NAME}" in mirl(capsys, "verify", beside(tmp_path / NAME, "weights"))[1]
    folder = smoke_results / "smoke" / "all_in_one" / "MIR-L-G" / "seed0"
    assert "give the folder with its run.json" in mirl(capsys, "verify", folder / "round02/weights.safetensors")[1]


def test_an_import_says_what_a_checkpoint_does_not_tell(capsys, smoke_results, tmp_path):
    folder, checkpoint, back = smoke_results / "smoke/all_in_one/MIR-L-G/seed0", tmp_path / "a.ckpt", tmp_path / NAME
    assert mirl(capsys, "export", folder, "--to", checkpoint, "--rewound")[0] == 0
    code, out, _ = mirl(capsys, "import", checkpoint, "--to", back)
    assert code == 0 and "knows no seed, start, rules or scores" in out and "LayerNorm gains count as prunable" in out
    assert "those of the checkpoint, trained or not, sha256" in mirl(capsys, "show", back)[1]


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def scaled(path: Path) -> None:
    values = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: 2 * value for name, value in values.items()}, path)


def other_scores(path: Path) -> None:
    pd.read_csv(path).assign(psnr=50.0).to_csv(path, index=False)


CHANGES = {  # of a run folder whose round 2 was finished: what is changed, what is said
    "mask of another round": (lambda f: shutil.copy(f / "round01/mask.npz", f / "round02"), "mask: kept is "),
    "as many, elsewhere": (
        lambda f: Mask.load(f / "round02/mask.npz").shuffled(torch.Generator()).save(f / "round02/mask.npz"),
        "mask: has sha256",
    ),
    "metrics": (lambda f: other_scores(f / "round02/metrics.csv"), "metrics.csv: has sha256"),
    "density": (lambda f: change_json(f / "round02/round.json", lambda c: c.update(density=0.5)), "and 0.5 in round"),
    "weights": (lambda f: scaled(f / "round02/weights.safetensors"), "weights.safetensors: has sha256"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_verify_holds_a_run_folder_to_its_record(capsys, smoke_results, tmp_path, change):
    folder = shutil.copytree(smoke_results / "smoke" / "all_in_one" / "MIR-L-G" / "seed0", tmp_path / "seed0")
    damage, words = CHANGES[change]
    damage(folder)
    code, out, err = mirl(capsys, "verify", folder)
    failed = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert code == 1 and any(words in line for line in failed) and "problem" in err


def test_a_record_without_hashes_says_so(capsys, smoke_results, tmp_path):
    folder = shutil.copytree(smoke_results / "smoke" / "all_in_one" / "MIR-L-G" / "seed0", tmp_path / "seed0")
    change_json(folder / "round02/round.json", lambda content: content.pop("sha256"))
    code, out, _ = mirl(capsys, "verify", folder)
    assert code == 0 and out.count("--   no hash on record: ") == 3 and "mask: kept, prunable, density" in out


MISTAKES = [
    (["show", "{tmp}/nothing"], "does not exist"),
    (["verify", "{tmp}/nothing"], "does not exist"),
    (["show", "{tmp}"], "is no run folder (no run.json in it) and no ticket"),
    (["show", "{ticket}", "--round", 1], "is one ticket, not a run folder"),
    (["show", "{run}", "--round", 9], "round=9 is not one of 1, 2, the finished rounds of"),
    (["shw", "{run}"], "No such command 'shw'"),
    (["export", "{run}", "--to", "{tmp}/x.pt"], "format='pt' is not one of released, safetensors, ticket"),
    (["export", "{run}", "--to", "{tmp}/x", "--format", "tickets"], "did you mean 'ticket'"),
    (["export", "{run}", "--to", "{tmp}/x", "--format", "ticket"], "ends in .ticket.safetensors is wanted"),
    (["export", "{run}", "--to", "{tmp}/x.ticket.safetensors", "--rewound"], "a ticket gives both networks"),
    (["export", "{ticket}", "--to", "{tmp}/x.ckpt"], "trained weights of this ticket were not kept"),
    (["export", "{run}", "--round", 1, "--to", "{tmp}/x.ckpt"], "not kept (those of rounds: 2); --rewound writes"),
    (["import", "{ticket}", "--to", "{tmp}/x.ticket.safetensors"], "is a ticket already: mirl ticket show"),
    (["export", "{run}", "--to", "{ticket}/x.ckpt"], "cannot be written"),
    (["export", "{run}", "--to", "{ticket}"], "exists already"),
    (["import", "{ckpt}", "--to", "{tmp}/x.ckpt"], "ends in .ticket.safetensors is wanted"),
    (["import", "{tmp}/none.ckpt", "--to", "{tmp}/x.ticket.safetensors"], "cannot be read: No such file"),
    (["import", "{ckpt}", "--to", "{tmp}/x.ticket.safetensors", "--setting", "rain"], "did you mean 'derain'"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda value: " ".join(map(str, value))[:50])
def test_a_mistake_is_one_line_and_leaves_nothing(capsys, smoke_results, tmp_path, words, said):
    run = smoke_results / "smoke" / "all_in_one" / "MIR-L-G" / "seed0"
    ticket, ckpt = tmp_path / NAME, tmp_path / "a.ckpt"
    made().save(ticket)
    torch.save({}, ckpt)
    places = {"tmp": tmp_path, "run": run, "ticket": ticket, "ckpt": ckpt}
    code, out, err = mirl(capsys, *(str(word).format(**places) for word in words))
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", NAME]

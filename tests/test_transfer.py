import json
import shutil

import pytest
import torch

from mirl_study import SettingsError, build_network, cli, load_settings, lottery, transfer
from mirl_study.network import fingerprint


@pytest.fixture(scope="module")
def played(smoke_results, tmp_path_factory):
    """A ticket of all-in-one, trained on rain; and the dense network and ticket of rain itself."""
    root = tmp_path_factory.mktemp("transfer")
    shutil.copytree(smoke_results / "smoke", root / "smoke")
    for last in lottery.rounds(load_settings("smoke", setting="derain"), root, "cpu", show=False):
        own = last
    *_, ticket = lottery.rounds(load_settings("smoke"), root, "cpu", show=False)
    return root, ticket, own, transfer.play(ticket, "derain", root, "cpu", show=False)


def test_a_transfer_has_the_mask_of_one_setting_and_the_images_of_another(played):
    root, ticket, own, made = played
    assert made.mask == ticket.mask != own.mask
    assert set(made.metrics.task) == {"derain"}
    folder = root / "smoke/derain/controls/transfer-all_in_one-MIR-L-G-round02/seed0"
    assert made.run.folder == folder and (folder / "summary.csv").is_file()
    facts = json.loads((folder / "round01/round.json").read_text())
    assert facts["start_sha256"] == fingerprint(build_network("pico", 0))
    assert facts["steps"] == load_settings("smoke").steps


def test_a_finished_transfer_is_read(played):
    root, ticket, _, made = played
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert transfer.play(ticket, "derain", root, "cpu", show=False).metrics.equals(made.metrics)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == stamps


def test_the_table_sets_it_beside_the_settings_own_ticket(played):
    root, _, own, made = played
    table = transfer.table("smoke", root)
    means = table[table.task == "derain"].set_index("from")
    assert means.to.unique().tolist() == ["derain"] and set(means.index) == {"derain", "all_in_one"}
    assert means.psnr["all_in_one"] == pytest.approx(made.scores.psnr["derain"])
    assert means.psnr["derain"] == pytest.approx(own.scores.psnr["derain"])
    dense = lottery.dense_round(load_settings("smoke", setting="derain"), root, "cpu", show=False)
    gap = made.scores.psnr["derain"] - dense.scores.psnr["derain"]
    assert means.delta["all_in_one"] == pytest.approx(gap)
    sentence, missing = transfer.in_words(table)
    mine = own.scores.psnr["derain"] - dense.scores.psnr["derain"]
    texts = [f"{value:+.2f} dB".replace("-", "−") for value in (mine, gap)]
    assert sentence.startswith(
        f"Trained on derain, MIR-L-G, round 2, against the dense network: its own ticket {texts[0]}"
    )
    assert f"the mask of all_in_one {texts[1]}" in sentence and "all_in_one -> derain" not in missing
    assert missing.startswith("MIR-L-G: not tried are derain -> dehaze")
    still = table.assign(psnr=table.input_psnr)
    assert transfer.in_words(still)[0].count("(it returns its input)") == 2


def test_no_transfer_is_said_in_one_line(smoke_results):
    table = transfer.table("smoke", smoke_results)
    assert table.empty and "mirl ticket transfer" in transfer.in_words(table)[0]
    assert "derain -> dehaze" in transfer.missing(table) and len(transfer.missing(table)) == 12


@pytest.mark.parametrize(
    ("setting", "message"),
    [("deran", "did you mean 'derain'"), ("all_in_one", "setting='all_in_one' is the ticket's own")],
)
def test_a_setting_that_cannot_be(played, setting, message):
    with pytest.raises(SettingsError, match=message) as error:
        transfer.play(played[1], setting, played[0], "cpu", show=False)
    assert "\n" not in str(error.value)


def test_by_command(played, capsys):
    root, *_, made = played
    run = root / "smoke/all_in_one/MIR-L-G/seed0"
    for words, code, said in (
        (["--on", "derain", "--round", "2"], 0, f"{made.run.folder}: {made.scores.psnr.mean():.2f} dB"),
        (["--on", "derain,deran"], 2, "on='deran' is not one of"),
        (["--on", "derain", "--round", "9"], 2, "round=9 is not one of 1, 2"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["ticket", "transfer", str(run), *words])
        told = capsys.readouterr()
        assert end.value.code == code and said in (told.err if code else told.out)


def test_a_dense_round_is_no_ticket_and_a_folder_belongs_to_one(played):
    root, ticket, *_ = played
    dense = lottery.dense_round(load_settings("smoke"), root, "cpu", show=False)
    with pytest.raises(SettingsError, match="is no ticket"):
        transfer.play(dense, "derain", root, "cpu", show=False)
    other = lottery.Round(ticket.run, 2, ticket.mask.shuffled(torch.Generator()), ticket.history, ticket.metrics)
    with pytest.raises(SettingsError, match="ticket_mask"):
        transfer.play(other, "derain", root, "cpu", show=False)

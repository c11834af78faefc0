"""Every control of a notebook moves in a real JupyterLab, and its figure with it.

What runs is the `quick` copy: the committed cells with less training and without the last one.
"""

import io

import numpy as np
import pytest
from lab_page import open_and_run
from PIL import Image

# What makes each notebook short: literals of its parameters cell, and sizes of its profile.
QUICK = {
    "attacks/extraction_functionality": (
        dict(NUM_STEPS=20),
        dict(num_draws=3, num_epochs=5, gan_steps=5, num_copied=800, copy_passes=1, num_bred=20),
    ),
    "attacks/inversion_class": (
        dict(NUM_STEPS=21),
        dict(strangers=40, epochs=2, cnn_epochs=1, ae_epochs=2, gan_steps=10, repeats=3)
        | dict(gamin_steps=5),
    ),
    "attacks/inversion_gradient": (
        dict(),
        dict(num_core=4, num_grid=8, num_few=4, num_pairs=2, num_published=4)
        | dict(core_evaluations=20, evaluations=6, batch_evaluations=6, label_evaluations=3)
        | dict(published_evaluations=4, small_evaluations=4, relu_evaluations=4, label_nets=1),
    ),
    "attacks/membership_label_only": (
        dict(NUM_EPOCHS=3),
        dict(num_victims=4, num_shadows=4, defender_models=2, num_steps=3, num_directions=4)
        | dict(noise_queries=8, judge_steps=20, guard_steps=10, few_records=10),
    ),
    "defenses/dp_gan": (
        dict(NUM_DRAWS=2),
        dict(num_steps=20, num_samples=100, num_pools=3, attack_steps=5, sgd_steps=10)
        | dict(rounds=4, merf_steps=10, references=2, steps_draws=2)
        | dict(gs=dict(num_steps=5, num_discriminators=20, warm_up=2, hidden=(32,)))
        | dict(few_gs=dict(num_steps=5, num_discriminators=4, warm_up=2, hidden=(32,))),
    ),
    "defenses/dp_sgd": (
        dict(),
        dict(num_steps=10, repeats=2, victims=4, shadows=8, attack_steps=10, short_steps=5)
        | dict(audit_steps=10, canaries=200, audits=1, chen_steps=10, yu_repeats=2),
    ),
    "defenses/extraction_defenses": (
        dict(),
        dict(num_draws=3, num_epochs=5, users=4, rounds=2, budgets=(100, 200, 300), passes=2.0)
        | dict(wrong_epochs=1, tree_budgets=(25, 50), tree_draws=2),
    ),
    "defenses/membership_training": (
        dict(NUM_EPOCHS=4),
        dict(num_victims=4, num_shadows=4, train_size=60, attack_epochs=2),
    ),
    "defenses/output_perturbation": (
        dict(),
        dict(num_victims=4, num_shadows=4, num_epochs=5, early=(2, 3), guard_steps=5)
        | dict(own_steps=10, judge_steps=20, attack_epochs=2, purifier_epochs=1, inverted=4)
        | dict(inverter_epochs=2, mid_epochs=1, draws=2),
    ),
    "defenses/gradient_defenses": (
        dict(),
        dict(pool=200, tests=100, victims=4, rounds=3, clients=8, repeats=2)
        | dict(evaluations=6, few_evaluations=4),
    ),
    "images/adversarial_cloaking": (
        dict(NUM_STEPS=3),
        dict(users=4, others=4, identities=60, later_identities=60, epochs=1, copied=64)
        | dict(groups=2, tuning_epochs=1, universal_steps=4, perturb_steps=3),
    ),
    "images/obfuscation": (
        dict(),
        dict(known=6, tagged=4, probes=4, public=20, photos=4, passes=200, others=40)
        | dict(counts=(1, 2), body_people=8, body_public=8, album_people=4, deals=1),
    ),
    "images/attribute_obfuscation": (
        dict(),
        dict(known=6, tagged=4, probes=4, public=40, photos=4, own=60, own_photos=3, asked=20)
        | dict(album=4, others=160, code=16, passes=200, surrogate_epochs=1),
    ),
    "images/dp_images": (
        dict(),
        dict(known=6, tagged=4, probes=4, public=20, photos=4, passes=200, others=40)
        | dict(dim=12, trials=400, body_people=6, body_public=12),
    ),
    "images/deidentification": (
        dict(),
        dict(known=6, tagged=4, probes=4, public=20, photos=4, helpers=20, each=8, others=40)
        | dict(reader_passes=200, passes=200, swap_passes=200, short=100, steps=2)
        | dict(veil_passes=200),
    ),
    "synthesis/arms_race": (
        dict(),
        dict(train_size=60, num_epochs=3, early=2, others=(1,), num_victims=4, num_shadows=4)
        | dict(attack_epochs=1, guard_steps=4, own_steps=5, inversion_steps=3, clients=4)
        | dict(evaluations=4, queries=60, clone_steps=6),
    ),
}

# Where one's own photo can be protected: the file to download, and its height and width.
UPLOADS = {
    "images/adversarial_cloaking": ("cloaked.png", 32),
    "images/obfuscation": ("protected.png", 128),
    "images/attribute_obfuscation": ("protected.png", 32),
    "images/dp_images": ("protected.png", 32),
    "images/deidentification": ("swapped.png", 32),
}


@pytest.mark.parametrize("name", QUICK)
def test_every_control_changes_its_figure(page, quick_copy, name):
    expect = pytest.importorskip("playwright.sync_api").expect
    path, _ = quick_copy(name, *QUICK[name])
    open_and_run(page, path, seconds=480)

    outputs = page.locator(".jp-Notebook .jp-Cell .jp-OutputArea").filter(
        has=page.locator("img[alt^='figure for']")
    )
    moved = 0
    for i in range(outputs.count()):
        figure = outputs.nth(i).locator("img[alt^='figure for']")
        sliders, choices = (outputs.nth(i).locator(kind) for kind in (".noUi-handle", "select"))
        moves = [lambda s=s: _step(s) for s in sliders.all()]
        for select in choices.all():
            last = select.locator("option").last.inner_text()
            moves.append(lambda s=select, last=last: s.select_option(label=last))
        for move in moves:
            state, drawn = figure.get_attribute("alt"), figure.get_attribute("src")
            move()
            expect(figure).not_to_have_attribute("alt", state)
            expect(figure).not_to_have_attribute("src", drawn)
            assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200
            moved += 1
    assert moved >= 2, f"{name} shows {moved} controls"
    if name in UPLOADS:
        _protect_photos(page, expect, *UPLOADS[name])


def _step(slider):
    """Moves a slider by one step: up, or down from its end."""
    at_end = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
    slider.focus()
    slider.press("ArrowLeft" if at_end else "ArrowRight")


def _protect_photos(page, expect, name, size):
    """Chooses photos in the upload widget, downloads the results; then files that are none."""
    button = page.get_by_role("button", name="choose a photo")
    output = page.locator(".jp-Notebook .jp-Cell .jp-OutputArea").filter(has=button)
    noise = np.random.default_rng(0).integers(0, 255, (200, 150, 4), np.uint8)

    def choose(photo):
        file = photo
        if isinstance(photo, Image.Image):
            saved = io.BytesIO()
            photo.save(saved, "PNG")
            file = saved.getvalue()
        with page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files(dict(name="me.png", mimeType="image/png", buffer=file))

    for pixels in (noise[..., :3], noise[..., 0], noise):  # color, gray, transparency
        choose(Image.fromarray(pixels))
        expect(output.locator("img[alt='the result']")).to_be_visible(timeout=60_000)
        with page.expect_download() as download:
            output.get_by_role("link", name=f"download {name}").click()
        assert download.value.suggested_filename == name
        assert Image.open(download.value.path()).size == (size, size)
        output.get_by_role("button", name="Clear").click()
        expect(output.locator("img[alt='the result']")).to_have_count(0)

    for wrong in (b"no picture", Image.new("L", (1, 1)), Image.new("L", (8000, 6250))):
        choose(wrong)
        expect(output.locator("pre")).to_contain_text("me.png", timeout=60_000)
        output.get_by_role("button", name="Clear").click()
        expect(output.locator("pre")).to_have_count(0)

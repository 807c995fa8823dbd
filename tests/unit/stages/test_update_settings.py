"""The recipe's rates as the update sees them."""

from pipeline.config import load_recipe, vary
from pipeline.distill.rates import rate_at
from pipeline.stages.distill import update_settings


def test_the_fake_score_may_keep_its_rate_while_the_students_falls() -> None:
    falling = load_recipe("pipeline/recipes/bench.yaml", ["distill.schedule=cosine"])
    falling = vary(falling, {"distill.fake_schedule": None})
    kept = vary(falling, {"distill.fake_schedule": "constant"})
    last = falling.distill.rounds - 1
    for recipe, share in ((falling, 0.01), (kept, 1.0)):
        settings = update_settings(recipe)
        assert rate_at(settings.student_rate, last, last + 1) < 0.011 * settings.student_rate.peak
        found = rate_at(settings.fake_rate, last, last + 1) / settings.fake_rate.peak
        assert abs(found - share) < 1e-9

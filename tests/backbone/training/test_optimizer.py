import math

from backbone.training.optimizer import average_decay


def test_an_average_forgets_the_first_weights_and_comes_to_full_decay():
    kept = math.prod(average_decay(0.9999, step) for step in range(1000))
    assert math.isclose(kept, math.factorial(9) * math.factorial(1000) / math.factorial(1009), rel_tol=1e-9)
    assert kept < 0.01
    assert average_decay(0.9999, 89_980) < average_decay(0.9999, 89_990) == 0.9999

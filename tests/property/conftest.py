from hypothesis import HealthCheck, settings

# The machine may be busy: what is slow is no fault. A falsifying example is printed with the blob that brings it back.
settings.register_profile("ramify", max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ramify")

"""What `serve run serve_app:app` is given; deploying it is what every other test here rests on."""

from __future__ import annotations

from ray import serve

import serve_app
from kitbash_ray.config import load_settings


def test_the_app_that_serve_run_is_given_is_a_serve_application() -> None:
    assert isinstance(serve_app.app, serve.Application)


def test_an_application_can_be_built_from_any_settings() -> None:
    assert isinstance(serve_app.build(load_settings(kitbash_replicas=2)), serve.Application)

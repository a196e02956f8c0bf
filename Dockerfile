# syntax=docker/dockerfile:1
# One image for all services of docker-compose.yml; they differ in their command. See docs/docker.md.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 kitbash
USER kitbash
WORKDIR /home/kitbash/app
COPY --chown=kitbash:kitbash . .
# The compiled llama.cpp is kept in uv's cache, so that a change of the code does not compile it again.
RUN --mount=type=cache,target=/home/kitbash/.cache/uv,uid=1000,gid=1000 UV_LINK_MODE=copy make setup

FROM ${PYTHON}
# libgomp1 for llama.cpp, procps for health checks.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 procps && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 kitbash && install -d -o kitbash -g kitbash /home/kitbash/.local/state/kitbash
USER kitbash
WORKDIR /home/kitbash/app
COPY --from=build --chown=kitbash:kitbash /home/kitbash/app .
COPY --from=build --chown=kitbash:kitbash /home/kitbash/.cache/kitbash /home/kitbash/.cache/kitbash
ENV PATH=/home/kitbash/app/.venv/bin:$PATH
CMD ["kitbash", "--help"]

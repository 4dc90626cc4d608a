# The deployment of this repository: the wheel, and workers/ on top of it.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt \
        "orchestrator-celery[flower,speed] @ file://$(echo /wheels/*.whl)"
RUN useradd --system --uid 10001 --create-home --shell /usr/sbin/nologin orchestrator
WORKDIR /app
COPY alembic.ini ./
COPY alembic ./alembic
COPY workers ./workers
USER orchestrator
# Celery stops on SIGTERM: it hands unfinished steps back within ORCHESTRATOR_SHUTDOWN_GRACE (25 s).
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "workers", "worker", "--loglevel", "INFO"]

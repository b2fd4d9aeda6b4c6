# hpsearch, installed in /app from its checkout, as an ordinary user. The default torch is the CUDA
# build; EXTRA_INDEX_URL can name an index that has smaller, CPU-only ones.
FROM python:3.12-slim

ARG EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

WORKDIR /app
# Packages in a layer of their own, kept while only the source changes. An editable install needs
# no more of the source than that its folders hold a file.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir data model search studies \
    && touch data/__init__.py model/__init__.py search/__init__.py studies/__init__.py \
    && PIP_EXTRA_INDEX_URL="$EXTRA_INDEX_URL" pip install --editable '.[postgres,proxy,s3]'
COPY . .

# What a run makes: a volume, which takes over the owner of this folder.
RUN useradd --uid 10001 --create-home hpsearch \
    && mkdir --parents var \
    && chown hpsearch var
ENV HPSEARCH_DIRECTORY=/app/var
VOLUME /app/var
USER hpsearch

ENTRYPOINT ["hpsearch"]

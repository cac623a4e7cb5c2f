# Backgrounds removed, features of every set, the table of distances (paper, section 4).
MASKED = {"real-a-nobg": "real-a", "real-b-nobg": "real-b", "mv-nobg-hag": "mv-bg-hag"}
# Row of the table: the set that is scored, and the real set it is compared with.
ROWS = {
    "real-vs-real": ("real-b", "real-a"),
    "no-mv": ("no-mv", "real-a"),
    "mv-bg-no-hag": ("mv-bg-no-hag", "real-a"),
    "mv-bg-hag": ("mv-bg-hag", "real-a"),
    "untrained": ("untrained", "real-a"),
    "real-vs-real-nobg": ("real-b-nobg", "real-a-nobg"),
    "mv-nobg-hag": ("mv-nobg-hag", "real-a-nobg"),
}


rule masks:
    input:
        images=lambda wildcards: (
            f"<results>/{wildcards.dataset}/sets/{MASKED[wildcards.masked]}/images.h5"
        ),
        foreground=rules.foreground.output.model,
    output:
        images="<results>/{dataset}/sets/{masked}/images.h5",
        picture="<results>/{dataset}/sets/{masked}/masks.png",
        summary="<results>/{dataset}/sets/{masked}/masks.json",
        run="<results>/{dataset}/sets/{masked}/masks.run.json",
    log:
        "<results>/{dataset}/logs/masks-{masked}.log",
    benchmark:
        "<results>/{dataset}/benchmarks/masks-{masked}.tsv"
    wildcard_constraints:
        masked="|".join(MASKED),
    conda:
        "../envs/mirage.yaml"
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        words=section("backbone", "masks"),
        out=subpath(output.images, parent=True),
        code=code_hash("masks"),
    message:
        "{wildcards.dataset}: removing the background, {wildcards.masked}"
    shell:
        "python -m mirage_steps.masks --images {input.images:q} --foreground {input.foreground:q}"
        " --out {params.out:q} {params.words} 2>&1 | tee {log:q}"


rule embed:
    input:
        images="<results>/{dataset}/sets/{set}/images.h5",
    output:
        features="<results>/{dataset}/sets/{set}/features.h5",
        run="<results>/{dataset}/sets/{set}/embed.run.json",
    log:
        "<results>/{dataset}/logs/embed-{set}.log",
    benchmark:
        "<results>/{dataset}/benchmarks/embed-{set}.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: workflow.cores
    resources:
        gpu=1,
    params:
        words=section("backbone", "embed"),
        out=subpath(output.features, parent=True),
        code=code_hash("embed"),
    message:
        "{wildcards.dataset}: features of {wildcards.set}"
    shell:
        "python -m mirage_steps.embed --images {input.images:q} --out {params.out:q}"
        " {params.words} 2>&1 | tee {log:q}"


def features_of_rows(wildcards):
    names = {name for pair in ROWS.values() for name in pair}
    return {name: f"<results>/{wildcards.dataset}/sets/{name}/features.h5" for name in names}


def row_words(wildcards, input):
    return shlex.join(
        word
        for row, (scored, real) in ROWS.items()
        for word in ("--row", row, input[scored], input[real])
    )


rule fid:
    input:
        unpack(features_of_rows),
    output:
        table=ensure("<results>/{dataset}/fid.txt", non_empty=True),
        metrics="<results>/{dataset}/metrics.json",
        run="<results>/{dataset}/fid.run.json",
    log:
        "<results>/{dataset}/logs/fid.log",
    benchmark:
        "<results>/{dataset}/benchmarks/fid.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: workflow.cores
    params:
        rows=row_words,
        out=subpath(output.table, parent=True),
        code=code_hash("fid"),
    message:
        "{wildcards.dataset}: the table of distances"
    shell:
        "python -m mirage_steps.fid --dataset {wildcards.dataset} --out {params.out:q}"
        " {params.rows} 2>&1 | tee {log:q}"

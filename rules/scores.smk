# Backgrounds removed, features of every set, the table of distances (paper, section 4).
rule masks:
    input:
        images=lambda wildcards: (
            f"<results>/{wildcards.dataset}/sets/{MASKED[wildcards.masked]}/images.h5"
        ),
        foreground=rules.foreground.output.model,
        backbone=weights("backbone", "model"),
        sam=weights("masks", "sam"),
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
    threads: 8
    resources:
        gpu=1,
        batch_size=setting("backbone", "batch_size"),
        sam_batch_size=setting("masks", "sam_batch_size"),
    params:
        words=section("backbone", "masks"),
        out=subpath(output.images, parent=True),
        code=code_hash("masks"),
    message:
        "{wildcards.dataset}: removing the background, {wildcards.masked}"
    shell:
        "python -m mirage_steps.masks --images {input.images:q} --foreground {input.foreground:q}"
        " --out {params.out:q} {params.words} --batch-size {resources.batch_size}"
        " --sam-batch-size {resources.sam_batch_size} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule embed:
    input:
        images="<results>/{dataset}/sets/{set}/images.h5",
        backbone=weights("backbone", "model"),
        inception=weights("embed", "inception"),
    output:
        features="<results>/{dataset}/sets/{set}/features.h5",
        run="<results>/{dataset}/sets/{set}/embed.run.json",
    log:
        "<results>/{dataset}/logs/embed-{set}.log",
    benchmark:
        "<results>/{dataset}/benchmarks/embed-{set}.tsv"
    wildcard_constraints:
        set="[^/]+",
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        batch_size=setting("backbone", "batch_size"),
    params:
        words=section("backbone", "embed"),
        out=subpath(output.features, parent=True),
        code=code_hash("embed"),
    message:
        "{wildcards.dataset}: features of {wildcards.set}"
    shell:
        "python -m mirage_steps.embed --images {input.images:q} --out {params.out:q}"
        " {params.words} --batch-size {resources.batch_size} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


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
    threads: 8
    params:
        rows=row_words,
        out=subpath(output.table, parent=True),
        code=code_hash("fid"),
    message:
        "{wildcards.dataset}: the table of distances"
    shell:
        "python -m mirage_steps.fid --dataset {wildcards.dataset} --out {params.out:q}"
        " {params.rows} 2>&1 | (trap '' INT TERM; exec tee {log:q})"

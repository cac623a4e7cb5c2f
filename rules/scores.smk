# Backgrounds removed, features of every set, the table of distances (paper, section 4).
# Before the training, where it can be: a network that is not there shows at once.
rule masks:
    input:
        images=unmasked,
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
        masked="mv-nobg-hag|.+-nobg",
    priority: 10
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
        batch_size=setting("backbone", "batch_size"),
        sam_batch_size=setting("masks", "sam_batch_size"),
        weights=shlex.quote(configuration.weights),
    params:
        words=section("backbone", "masks"),
        out=subpath(output.images, parent=True),
        code=code_hash("masks"),
    message:
        "{wildcards.dataset}: removing the background, {wildcards.masked}"
    shell:
        "python -m mirage_steps.masks --images {input.images:q} --foreground {input.foreground:q}"
        " --out {params.out:q} {params.words} --batch-size {resources.batch_size}"
        " --sam-batch-size {resources.sam_batch_size} --weights {resources.weights} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


# Before the training, where it can be: a network that is not there shows at once.
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
    priority: 10
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
        batch_size=setting("backbone", "batch_size"),
        weights=shlex.quote(configuration.weights),
    params:
        words=section("backbone", "embed"),
        out=subpath(output.features, parent=True),
        code=code_hash("embed"),
    message:
        "{wildcards.dataset}: features of {wildcards.set}"
    shell:
        "python -m mirage_steps.embed --images {input.images:q} --out {params.out:q}"
        " {params.words} --batch-size {resources.batch_size} --weights {resources.weights} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


# Images of another method, given in a folder.
rule baseline:
    input:
        there=baseline_there,
    output:
        images="<results>/{dataset}/sets/{baseline}/images.h5",
        picture="<results>/{dataset}/sets/{baseline}/images.png",
        rejected="<results>/{dataset}/sets/{baseline}/rejected.csv",
        run="<results>/{dataset}/sets/{baseline}/baseline.run.json",
    log:
        "<results>/{dataset}/logs/baseline-{baseline}.log",
    wildcard_constraints:
        baseline="|".join(map(re.escape, BASELINES)) or "(?!)",
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        words=baseline_words,
        image_size=setting("training", "image_size"),
        fid=section("fid"),
        out=subpath(output.images, parent=True),
        code=code_hash("baseline"),
    message:
        "{wildcards.dataset}: images of {wildcards.baseline}"
    shell:
        "python -m mirage_steps.baseline --out {params.out:q} --image-size {params.image_size}"
        " {params.words} {params.fid} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


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
        paper=paper_words,
        out=subpath(output.table, parent=True),
        code=code_hash("fid"),
    message:
        "{wildcards.dataset}: the table of distances"
    shell:
        "python -m mirage_steps.fid --dataset {wildcards.dataset} --out {params.out:q}"
        " {params.rows} {params.paper} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule overview:
    input:
        table=rules.fid.output.table,
        pictures=[
            rules.foreground.output.picture,
            rules.poses.output.picture,
            rules.pose_eval.output.picture,
            rules.train.output.loss,
            "<results>/{dataset}/sets/no-mv/images.png",
            "<results>/{dataset}/sets/mv-bg-hag/images.png",
            "<results>/{dataset}/sets/mv-nobg-hag/masks.png",
            rules.sheet.output.sheet,
            rules.sheet.output.turn,
        ],
        photos=turned_photos,
    output:
        overview="<results>/{dataset}/overview.txt",
    log:
        "<results>/{dataset}/logs/overview.log",
    localrule: True
    conda:
        "../envs/mirage.yaml"
    message:
        "{wildcards.dataset}: everything; the table and the list of pictures"
    shell:
        "(cat {input.table:q}; echo; echo Pictures:; printf '  %s\\n' {input.pictures:q} {input.photos:q})"
        " > {output.overview:q} 2> {log:q}"

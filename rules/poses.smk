# From images to pose labels (paper, section 3.1).


rule dataset:
    input:
        there=source_there,
        weights=weights("source", "model"),
    output:
        manifest="<results>/{dataset}/manifest.csv",
        rejected="<results>/{dataset}/rejected.csv",
        run="<results>/{dataset}/dataset.run.json",
    log:
        "<results>/{dataset}/logs/dataset.log",
    benchmark:
        "<results>/{dataset}/benchmarks/dataset.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=lambda wildcards: int(dataset_settings(wildcards).source.kind == "stable-diffusion"),
        accelerator=lambda wildcards: int(
            dataset_settings(wildcards).source.kind == "stable-diffusion"
        ),
        source_batch=source_batch,
        weights=shlex.quote(configuration.weights),
    params:
        source=source_words,
        out=subpath(output.manifest, parent=True),
        code=source_code,
    message:
        "{wildcards.dataset}: listing the images, or making them"
    shell:
        "python -m mirage_steps.dataset --out {params.out:q} --weights {resources.weights}"
        " {params.source} {resources.source_batch} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule features:
    input:
        manifest=rules.dataset.output.manifest,
        weights=weights("backbone", "model"),
    output:
        tokens=part("<results>/{dataset}/features/tokens.h5"),
        run=part_record("<results>/{dataset}/features/features"),
    log:
        f"<results>/{{dataset}}/logs/features{PART}.log",
    benchmark:
        f"<results>/{{dataset}}/benchmarks/features{PART}.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
        batch_size=setting("backbone", "batch_size"),
        weights=shlex.quote(configuration.weights),
    params:
        backbone=section("backbone"),
        out=subpath(output.tokens, parent=True),
        shard=shard,
        code=code_hash("features"),
    message:
        "{wildcards.dataset}: patch tokens of the images"
    shell:
        "python -m mirage_steps.features --manifest {input.manifest:q} --out {params.out:q}"
        " {params.backbone} --batch-size {resources.batch_size} --weights {resources.weights}"
        " --shard {params.shard} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule foreground:
    input:
        manifest=rules.dataset.output.manifest,
        tokens="<results>/{dataset}/features/tokens.h5",
        stored=stored("foreground/pca1.npz"),
    output:
        model="<results>/{dataset}/foreground/pca1.npz",
        windows="<results>/{dataset}/foreground/foreground.csv",
        choice="<results>/{dataset}/foreground/foreground.json",
        picture="<results>/{dataset}/foreground/foreground.png",
        run="<results>/{dataset}/foreground/foreground.run.json",
    log:
        "<results>/{dataset}/logs/foreground.log",
    benchmark:
        "<results>/{dataset}/benchmarks/foreground.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        foreground=section("foreground"),
        stored=stored_words,
        out=subpath(output.model, parent=True),
        code=code_hash("foreground"),
    message:
        "{wildcards.dataset}: foreground and crops by PCA 1"
    shell:
        "python -m mirage_steps.foreground --manifest {input.manifest:q} --tokens {input.tokens:q}"
        " --out {params.out:q} {params.foreground} {params.stored} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule crops:
    input:
        manifest=rules.dataset.output.manifest,
        windows=rules.foreground.output.windows,
    output:
        crops="<results>/{dataset}/crops/crops.h5",
        run="<results>/{dataset}/crops/crops.run.json",
    log:
        "<results>/{dataset}/logs/crops.log",
    benchmark:
        "<results>/{dataset}/benchmarks/crops.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        image_size=setting("training", "image_size"),
        out=subpath(output.crops, parent=True),
        code=code_hash("crops"),
    message:
        "{wildcards.dataset}: crops at the diffusion model's size"
    shell:
        "python -m mirage_steps.crops --manifest {input.manifest:q} --windows {input.windows:q}"
        " --out {params.out:q} --image-size {params.image_size} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule crop_features:
    input:
        manifest=rules.dataset.output.manifest,
        windows=rules.foreground.output.windows,
        weights=weights("backbone", "model"),
    output:
        tokens=temp(part("<results>/{dataset}/crop_features/tokens.h5")),
        run=part_record("<results>/{dataset}/crop_features/features"),
    log:
        f"<results>/{{dataset}}/logs/crop_features{PART}.log",
    benchmark:
        f"<results>/{{dataset}}/benchmarks/crop_features{PART}.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
        batch_size=setting("backbone", "batch_size"),
        weights=shlex.quote(configuration.weights),
    params:
        backbone=section("backbone"),
        out=subpath(output.tokens, parent=True),
        shard=shard,
        code=code_hash("features"),
    message:
        "{wildcards.dataset}: patch tokens of the crops"
    shell:
        "python -m mirage_steps.features --manifest {input.manifest:q} --windows {input.windows:q}"
        " --out {params.out:q} {params.backbone} --batch-size {resources.batch_size}"
        " --weights {resources.weights} --shard {params.shard} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


# Only for data sets with several kinds of object.
rule categories:
    input:
        manifest=rules.dataset.output.manifest,
        tokens="<results>/{dataset}/crop_features/tokens.h5",
        crops=rules.crops.output.crops,
        foreground=rules.foreground.output.model,
        stored=stored("categories/categories.npz"),
    output:
        categories="<results>/{dataset}/categories/categories.csv",
        model="<results>/{dataset}/categories/categories.npz",
        counts="<results>/{dataset}/categories/categories.json",
        picture="<results>/{dataset}/categories/categories.png",
        run="<results>/{dataset}/categories/categories.run.json",
    log:
        "<results>/{dataset}/logs/categories.log",
    benchmark:
        "<results>/{dataset}/benchmarks/categories.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        categories=lambda wildcards: model_settings(wildcards).categories,
        token=setting("embed", "token"),
        seed=setting("poses", "seed"),
        stored=stored_words,
        out=subpath(output.model, parent=True),
        code=code_hash("categories"),
    message:
        "{wildcards.dataset}: kinds of object"
    shell:
        "python -m mirage_steps.categories --manifest {input.manifest:q} --tokens {input.tokens:q}"
        " --crops {input.crops:q} --foreground {input.foreground:q} --out {params.out:q}"
        " --categories {params.categories} --token {params.token} --seed {params.seed}"
        " {params.stored} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule pose_space:
    input:
        tokens="<results>/{dataset}/crop_features/tokens.h5",
        foreground=rules.foreground.output.model,
        categories=categories_input,
        stored=stored("pose_space/pca2.npz"),
    output:
        model="<results>/{dataset}/pose_space/pca2.npz",
        maps="<results>/{dataset}/pose_space/maps.h5",
        run="<results>/{dataset}/pose_space/pose_space.run.json",
    log:
        "<results>/{dataset}/logs/pose_space.log",
    benchmark:
        "<results>/{dataset}/benchmarks/pose_space.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        pose_space=section("pose_space"),
        categories=categories_words,
        stored=stored_words,
        out=subpath(output.model, parent=True),
        code=code_hash("pose_space"),
    message:
        "{wildcards.dataset}: pose space by PCA 2"
    shell:
        "python -m mirage_steps.pose_space --tokens {input.tokens:q}"
        " --foreground {input.foreground:q} --out {params.out:q} {params.pose_space}"
        " {params.categories} {params.stored} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule poses:
    input:
        maps=rules.pose_space.output.maps,
        crops=rules.crops.output.crops,
        categories=categories_input,
        stored=stored("poses/poses.npz"),
    output:
        poses="<results>/{dataset}/poses/poses.csv",
        model="<results>/{dataset}/poses/poses.npz",
        counts="<results>/{dataset}/poses/poses.json",
        picture="<results>/{dataset}/poses/poses.png",
        run="<results>/{dataset}/poses/poses.run.json",
    log:
        "<results>/{dataset}/logs/poses.log",
    benchmark:
        "<results>/{dataset}/benchmarks/poses.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        poses=section("poses"),
        categories=categories_words,
        stored=stored_words,
        out=subpath(output.poses, parent=True),
        code=code_hash("poses"),
    message:
        "{wildcards.dataset}: poses by K-Means"
    shell:
        "python -m mirage_steps.poses --maps {input.maps:q} --crops {input.crops:q}"
        " --out {params.out:q} {params.poses} {params.categories} {params.stored} 2>&1 | (trap '' INT TERM; exec tee {log:q})"


rule pose_eval:
    input:
        manifest=rules.dataset.output.manifest,
        poses=rules.poses.output.poses,
        counts=rules.poses.output.counts,
        labels=labels_input,
    output:
        scores="<results>/{dataset}/poses/pose_eval.json",
        picture="<results>/{dataset}/poses/pose_eval.png",
        run="<results>/{dataset}/poses/pose_eval.run.json",
    log:
        "<results>/{dataset}/logs/pose_eval.log",
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        labels=lambda wildcards, input: (
            shlex.join(["--labels", input.labels]) if input.labels else ""
        ),
        out=subpath(output.scores, parent=True),
        code=code_hash("pose_eval"),
    message:
        "{wildcards.dataset}: poses against true azimuths or viewpoints"
    shell:
        "python -m mirage_steps.pose_eval --manifest {input.manifest:q} --poses {input.poses:q}"
        " --out {params.out:q} {params.labels} 2>&1 | (trap '' INT TERM; exec tee {log:q})"

# From images to pose labels (paper, section 3.1).


rule dataset:
    input:
        there=source_there,
        boxes=given_boxes,
        network=network("source.model"),
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
        gpu=lambda wildcards: int(dataset(wildcards).source.kind == "stable-diffusion"),
        accelerator=lambda wildcards: int(dataset(wildcards).source.kind == "stable-diffusion"),
    params:
        **step("dataset", code=source_code, source=setting("source")),
    message:
        "{wildcards.dataset}: listing or generating images"
    shell:
        RUN


rule features:
    input:
        manifest=rules.dataset.output.manifest,
        network=network("backbone.model"),
    output:
        tokens=sharded("<results>/{dataset}/features/tokens.h5", kept=True),
        run=record("<results>/{dataset}/features/features"),
    log:
        f"<results>/{{dataset}}/logs/features{SHARD}.log",
    benchmark:
        f"<results>/{{dataset}}/benchmarks/features{SHARD}.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step("features", shard=shard),
    message:
        "{wildcards.dataset}: patch tokens of the images"
    shell:
        RUN


# By the images alone, so that they can be left out before anything is fitted.
rule duplicates:
    input:
        manifest=rules.dataset.output.manifest,
    output:
        duplicates="<results>/{dataset}/screening/duplicates.csv",
        run="<results>/{dataset}/screening/duplicates.run.json",
    log:
        "<results>/{dataset}/logs/duplicates.log",
    benchmark:
        "<results>/{dataset}/benchmarks/duplicates.tsv"
    priority: 10
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step("duplicates"),
    message:
        "{wildcards.dataset}: near-duplicates"
    shell:
        RUN


rule foreground:
    input:
        manifest=rules.dataset.output.manifest,
        tokens="<results>/{dataset}/features/tokens.h5",
        duplicates=dropped,
        stored=stored_estimator("foreground"),
    output:
        estimator="<results>/{dataset}/foreground/pose_estimator.safetensors",
        windows="<results>/{dataset}/foreground/foreground.csv",
        choice="<results>/{dataset}/foreground/foreground.json",
        picture=shown("<results>/{dataset}/foreground/foreground.png", "Poses"),
        run="<results>/{dataset}/foreground/foreground.run.json",
    log:
        "<results>/{dataset}/logs/foreground.log",
    benchmark:
        "<results>/{dataset}/benchmarks/foreground.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step("foreground"),
    message:
        "{wildcards.dataset}: foreground and crops by PCA 1"
    shell:
        RUN


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
        **step("crops", image_size=setting("training.image_size")),
    message:
        "{wildcards.dataset}: crops at the diffusion model's size"
    shell:
        RUN


rule crop_features:
    input:
        manifest=rules.dataset.output.manifest,
        windows=rules.foreground.output.windows,
        network=network("backbone.model"),
    output:
        tokens=sharded("<results>/{dataset}/crop_features/tokens.h5"),
        run=record("<results>/{dataset}/crop_features/features"),
    log:
        f"<results>/{{dataset}}/logs/crop_features{SHARD}.log",
    benchmark:
        f"<results>/{{dataset}}/benchmarks/crop_features{SHARD}.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step("features", shard=shard),
    message:
        "{wildcards.dataset}: patch tokens of the crops"
    shell:
        RUN


# Only for data sets with several categories.
rule categories:
    input:
        manifest=rules.dataset.output.manifest,
        tokens="<results>/{dataset}/crop_features/tokens.h5",
        crops=rules.crops.output.crops,
        estimator=rules.foreground.output.estimator,
        stored=stored_estimator("categories"),
    output:
        categories="<results>/{dataset}/categories/categories.csv",
        estimator="<results>/{dataset}/categories/pose_estimator.safetensors",
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
        **step(
            "categories",
            categories=setting("categories"),
            token=setting("embed.token"),
            seed=setting("poses.seed"),
        ),
    message:
        "{wildcards.dataset}: object categories"
    shell:
        RUN


rule pose_space:
    input:
        tokens="<results>/{dataset}/crop_features/tokens.h5",
        estimator=estimator,
        categories=categories_table,
        stored=stored_estimator("pose_space"),
    output:
        estimator="<results>/{dataset}/pose_space/pose_estimator.safetensors",
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
        **step("pose_space"),
    message:
        "{wildcards.dataset}: pose space by PCA 2"
    shell:
        RUN


rule poses:
    input:
        there=edits_there,
        maps=rules.pose_space.output.maps,
        estimator=rules.pose_space.output.estimator,
        categories=categories_table,
        stored=stored_estimator("poses"),
    output:
        poses="<results>/{dataset}/poses/poses.csv",
        estimator="<results>/{dataset}/poses/pose_estimator.safetensors",
        counts="<results>/{dataset}/poses/poses.json",
        run="<results>/{dataset}/poses/poses.run.json",
    log:
        "<results>/{dataset}/logs/poses.log",
    benchmark:
        "<results>/{dataset}/benchmarks/poses.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    params:
        **step("poses"),
        edited=edited,
    message:
        "{wildcards.dataset}: poses"
    shell:
        RUN


# Only what draws reads the names, so that naming a pose makes no views and trains nothing.
rule pose_names:
    input:
        poses=rules.poses.output.poses,
        counts=rules.poses.output.counts,
        estimator=rules.poses.output.estimator,
        crops=rules.crops.output.crops,
        edits=given_edits,
        stored=stored_names,
    output:
        names="<results>/{dataset}/poses/names.json",
        picture=shown("<results>/{dataset}/poses/poses.png", "Poses"),
        run="<results>/{dataset}/poses/pose_names.run.json",
    log:
        "<results>/{dataset}/logs/pose_names.log",
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        **step("pose_names", k=setting("poses.k")),
    message:
        "{wildcards.dataset}: names and picture of the poses"
    shell:
        RUN


rule pose_eval:
    input:
        manifest=rules.dataset.output.manifest,
        poses=rules.poses.output.poses,
        counts=rules.poses.output.counts,
        labels=labels,
    output:
        scores="<results>/{dataset}/poses/pose_eval.json",
        picture=shown("<results>/{dataset}/poses/pose_eval.png", "Poses"),
        run="<results>/{dataset}/poses/pose_eval.run.json",
    log:
        "<results>/{dataset}/logs/pose_eval.log",
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        **step("pose_eval"),
    message:
        "{wildcards.dataset}: poses against true azimuths or viewpoints"
    shell:
        RUN


# Made where a mesh needs it, or where it is asked for.
rule cameras:
    input:
        maps=rules.pose_space.output.maps,
        poses=rules.poses.output.poses,
        counts=rules.poses.output.counts,
        manifest=rules.dataset.output.manifest,
        labels=labels,
    output:
        cameras="<results>/{dataset}/cameras/cameras.json",
        run="<results>/{dataset}/cameras/cameras.run.json",
    log:
        "<results>/{dataset}/logs/cameras.log",
    benchmark:
        "<results>/{dataset}/benchmarks/cameras.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 2
    params:
        **step("cameras"),
    message:
        "{wildcards.dataset}: cameras of the poses"
    shell:
        RUN


rule screening:
    input:
        manifest=rules.dataset.output.manifest,
        windows=rules.foreground.output.windows,
        poses=rules.poses.output.poses,
        estimator=rules.poses.output.estimator,
        duplicates=rules.duplicates.output.duplicates,
    output:
        warnings="<results>/{dataset}/screening/warnings.csv",
        counts="<results>/{dataset}/screening/screening.json",
        line="<results>/{dataset}/screening/screening.txt",
        picture=shown("<results>/{dataset}/screening/screening.png", "Images to look at"),
        run="<results>/{dataset}/screening/screening.run.json",
    log:
        "<results>/{dataset}/logs/screening.log",
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        **step("screening"),
    message:
        "{wildcards.dataset}: near-duplicates and images with warnings"
    shell:
        RUN

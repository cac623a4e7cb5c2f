# Real and generated image sets, contact sheets, novel views of photos (paper, section 3.3).
# Before the training: too few images fail early.
rule real:
    input:
        crops=rules.crops.output.crops,
        poses=rules.poses.output.poses,
    output:
        a="<results>/{dataset}/sets/real-a/images.h5",
        b="<results>/{dataset}/sets/real-b/images.h5",
        run="<results>/{dataset}/sets/real.run.json",
    log:
        "<results>/{dataset}/logs/real.log",
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        **step("real"),
    message:
        "{wildcards.dataset}: two disjoint sets of real images"
    shell:
        RUN


# How the run samples, for photos that are shown by its model later.
rule sampling:
    output:
        settings="<results>/{dataset}/training/sampling.json",
        run="<results>/{dataset}/training/sampling.run.json",
    log:
        "<results>/{dataset}/logs/sampling.log",
    localrule: True
    conda:
        "../envs/mirage.yaml"
    params:
        **step("sampling"),
    message:
        "{wildcards.dataset}: storing the settings of sampling"
    shell:
        RUN


rule views:
    input:
        model=shared("training/model.safetensors"),
        config=shared("training/config.json"),
        poses=shared("poses/poses.csv"),
        counts=shared("poses/poses.json"),
        estimator=scoring_estimator,
    output:
        # Shards have no picture.
        **({} if SHARD else {"picture": "<results>/{dataset}/sets/{set}/images.png"}),
        images=sharded("<results>/{dataset}/sets/{set}/images.h5", kept=True),
        run=record("<results>/{dataset}/sets/{set}/views"),
    log:
        f"<results>/{{dataset}}/logs/views-{{set}}{SHARD}.log",
    benchmark:
        f"<results>/{{dataset}}/benchmarks/views-{{set}}{SHARD}.tsv"
    wildcard_constraints:
        set=names("single", "multi-view"),
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step(
            "views",
            sampler=lambda wildcards: evaluation_set(wildcards).source,
            untrained=lambda wildcards: not evaluation_set(wildcards).trained,
            guidance=lambda wildcards: dataset(wildcards).guidance_of(evaluation_set(wildcards)),
            views=lambda wildcards: dataset(wildcards).views_of(evaluation_set(wildcards)),
            samples=setting("fid.samples"),
            shard=shard,
        ),
    message:
        "{wildcards.dataset}: generating {wildcards.set}"
    shell:
        RUN


# Images of another method, given in a folder.
rule baseline:
    input:
        there=baselines_there,
    output:
        images="<results>/{dataset}/sets/{set}/images.h5",
        picture="<results>/{dataset}/sets/{set}/images.png",
        rejected="<results>/{dataset}/sets/{set}/rejected.csv",
        run="<results>/{dataset}/sets/{set}/baseline.run.json",
    log:
        "<results>/{dataset}/logs/baseline-{set}.log",
    wildcard_constraints:
        set=names("baseline"),
    priority: 10
    conda:
        "../envs/mirage.yaml"
    params:
        **step(
            "baseline",
            baseline=lambda wildcards: dataset(wildcards).baselines[wildcards.set],
            image_size=setting("training.image_size"),
        ),
    message:
        "{wildcards.dataset}: images of {wildcards.set}"
    shell:
        RUN


rule sheet:
    input:
        model=shared("training/model.safetensors"),
        config=shared("training/config.json"),
        estimator=shared("poses/pose_estimator.safetensors"),
    output:
        objects="<results>/{dataset}/sheet/objects.h5",
        run="<results>/{dataset}/sheet/sheet.run.json",
    log:
        "<results>/{dataset}/logs/sheet.log",
    benchmark:
        "<results>/{dataset}/benchmarks/sheet.tsv"
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step("sheet", sheet=sheet, judged_objects=setting("evidence.judged_objects")),
    message:
        "{wildcards.dataset}: objects of the contact sheet"
    shell:
        RUN


rule contact_sheet:
    input:
        objects=rules.sheet.output.objects,
        names=pose_names,
    output:
        sheet=shown("<results>/{dataset}/sheet/contact_sheet.png", "Generated images"),
        turntable=shown("<results>/{dataset}/sheet/turntable.gif", "Generated images"),
        run="<results>/{dataset}/sheet/contact_sheet.run.json",
    log:
        "<results>/{dataset}/logs/contact_sheet.log",
    conda:
        "../envs/mirage.yaml"
    params:
        **step("contact_sheet", shown=setting("sheet.objects")),
    message:
        "{wildcards.dataset}: contact sheet and turntable"
    shell:
        RUN


# Objects of other methods above ours (Figure 8).
rule comparison:
    input:
        theirs=compared_sets,
        objects=rules.sheet.output.objects,
    output:
        picture="<results>/{dataset}/comparison.png",
        run="<results>/{dataset}/comparison.run.json",
    log:
        "<results>/{dataset}/logs/comparison.log",
    conda:
        "../envs/mirage.yaml"
    params:
        **step("comparison"),
    message:
        "{wildcards.dataset}: objects of other methods above ours"
    shell:
        RUN


# The same objects with one reference pose for all.
use rule sheet as reference_sheet with:
    input:
        model=shared("training/model.safetensors"),
        config=shared("training/config.json"),
        scores=shared("poses/pose_eval.json"),
    output:
        objects="<results>/{dataset}/sheet/reference-{reference}.h5",
        run="<results>/{dataset}/sheet/reference-{reference}.run.json",
    log:
        "<results>/{dataset}/logs/reference-{reference}.log",
    benchmark:
        "<results>/{dataset}/benchmarks/reference-{reference}.tsv"
    message:
        "{wildcards.dataset}: objects with reference {wildcards.reference}"


use rule contact_sheet as reference_contact_sheet with:
    input:
        objects=rules.reference_sheet.output.objects,
        names=pose_names,
    output:
        sheet="<results>/{dataset}/sheet/reference-{reference}.png",
        turntable="<results>/{dataset}/sheet/reference-{reference}.gif",
        run="<results>/{dataset}/sheet/contact_sheet-{reference}.run.json",
    log:
        "<results>/{dataset}/logs/contact_sheet-{reference}.log",
    message:
        "{wildcards.dataset}: contact sheet with reference {wildcards.reference}"


# Photos of a data set that uses the model of another one.
rule photo_sheet:
    input:
        model=model("training/model.safetensors"),
        config=model("training/config.json"),
        crops=rules.crops.output.crops,
        poses=rules.poses.output.poses,
        counts=rules.poses.output.counts,
        scores=rules.pose_eval.output.scores,
    output:
        views="<results>/{dataset}/photo_sheet/photos.h5",
        photos="<results>/{dataset}/photo_sheet/photos.json",
        run="<results>/{dataset}/photo_sheet/photo_sheet.run.json",
    log:
        "<results>/{dataset}/logs/photo_sheet.log",
    benchmark:
        "<results>/{dataset}/benchmarks/photo_sheet.tsv"
    wildcard_constraints:
        dataset="|".join(map(re.escape, USING)) or "(?!)",
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step("photo_sheet", sheet=sheet),
    message:
        "{wildcards.dataset}: novel views of its photos"
    shell:
        RUN


use rule contact_sheet as photo_contact_sheet with:
    input:
        objects=rules.photo_sheet.output.views,
        names=rules.pose_names.output.names,
    output:
        sheet="<results>/{dataset}/photo_sheet/contact_sheet.png",
        turntable="<results>/{dataset}/photo_sheet/turntable.gif",
        run="<results>/{dataset}/photo_sheet/contact_sheet.run.json",
    log:
        "<results>/{dataset}/logs/photo_contact_sheet.log",
    message:
        "{wildcards.dataset}: contact sheet of its photos"


# A photo of the folder `photos`.
rule novel_views:
    input:
        there=photo_there,
        model=model("training/model.safetensors"),
        config=model("training/config.json"),
        estimator=model("poses/pose_estimator.safetensors"),
        # Strips keep the names of the poses that they were made with.
        names=ancient(model("poses/names.json")),
        network=network("backbone.model"),
    output:
        strip="<results>/{dataset}/novel_views/{name}.png",
        turntable="<results>/{dataset}/novel_views/{name}.gif",
        about="<results>/{dataset}/novel_views/{name}.json",
        page=shown("<results>/{dataset}/novel_views/{name}.html", "Photos"),
        views=directory("<results>/{dataset}/novel_views/{name}.views"),
        run="<results>/{dataset}/novel_views/{name}.run.json",
    log:
        "<results>/{dataset}/logs/novel_views/{name}.log",
    benchmark:
        "<results>/{dataset}/benchmarks/novel_views/{name}.tsv"
    wildcard_constraints:
        name=r".+(?<!\.run)(?<!\.views)",
    conda:
        "../envs/mirage.yaml"
    threads: 8
    resources:
        gpu=1,
        accelerator=1,
    params:
        **step(
            "novel_views",
            photos=photo_path,
            run=lambda wildcards, input: str(Path(input.model).parents[1]),
            name=lambda wildcards: Path(wildcards.name).name,
        ),
        photo=lambda wildcards: content(photo(wildcards)),
    message:
        "{wildcards.dataset}: novel views of {wildcards.name}"
    shell:
        RUN


# Of a photo's novel views, by the cameras of the data set.
rule mesh:
    input:
        records=rules.novel_views.output.about,
        views=rules.novel_views.output.views,
        cameras=model("cameras/cameras.json"),
    output:
        glb="<results>/{dataset}/meshes/{name}.glb",
        obj="<results>/{dataset}/meshes/{name}.obj",
        material="<results>/{dataset}/meshes/{name}.mtl",
        texture="<results>/{dataset}/meshes/{name}.texture.png",
        picture="<results>/{dataset}/meshes/{name}.mesh.png",
        run="<results>/{dataset}/meshes/{name}.mesh.run.json",
    log:
        "<results>/{dataset}/logs/meshes/{name}.log",
    benchmark:
        "<results>/{dataset}/benchmarks/meshes/{name}.tsv"
    wildcard_constraints:
        name=r".+(?<!\.run)(?<!\.views)(?<!\.mesh)(?<!\.texture)",
    conda:
        "../envs/mirage.yaml"
    threads: 2
    params:
        **step("mesh"),
    message:
        "{wildcards.dataset}: mesh of {wildcards.name}"
    shell:
        RUN

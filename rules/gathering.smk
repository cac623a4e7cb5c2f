# Joins the shards of features, generated images and masks (`shards` in the configuration).
if configuration.shards > 1:

    rule gather_features:
        input:
            shards=shards_of("<results>/{dataset}/features/tokens", ".h5"),
            records=shards_of("<results>/{dataset}/features/features", ".run.json"),
        output:
            whole="<results>/{dataset}/features/tokens.h5",
            run="<results>/{dataset}/features/features.run.json",
        log:
            "<results>/{dataset}/logs/gather_features.log",
        conda:
            "../envs/mirage.yaml"
        params:
            **step("gather"),
        message:
            "{wildcards.dataset}: joining the shards of {output.whole}"
        shell:
            RUN

    use rule gather_features as gather_crop_features with:
        input:
            shards=shards_of("<results>/{dataset}/crop_features/tokens", ".h5"),
            records=shards_of("<results>/{dataset}/crop_features/features", ".run.json"),
        output:
            whole=temp("<results>/{dataset}/crop_features/tokens.h5"),
            run="<results>/{dataset}/crop_features/features.run.json",
        log:
            "<results>/{dataset}/logs/gather_crop_features.log",

    use rule gather_features as gather_views with:
        input:
            shards=shards_of("<results>/{dataset}/sets/{set}/images", ".h5"),
            records=shards_of("<results>/{dataset}/sets/{set}/views", ".run.json"),
        output:
            whole="<results>/{dataset}/sets/{set}/images.h5",
            picture="<results>/{dataset}/sets/{set}/images.png",
            run="<results>/{dataset}/sets/{set}/views.run.json",
        log:
            "<results>/{dataset}/logs/gather_views-{set}.log",
        wildcard_constraints:
            set=names("single", "multi-view"),

    use rule gather_features as gather_masks with:
        input:
            shards=shards_of("<results>/{dataset}/sets/{set}/images", ".h5"),
            records=shards_of("<results>/{dataset}/sets/{set}/masks", ".run.json"),
            images=unmasked,
        output:
            picture="<results>/{dataset}/sets/{set}/masks.png",
            summary="<results>/{dataset}/sets/{set}/masks.json",
            whole="<results>/{dataset}/sets/{set}/images.h5",
            run="<results>/{dataset}/sets/{set}/masks.run.json",
        log:
            "<results>/{dataset}/logs/gather_masks-{set}.log",
        wildcard_constraints:
            set=names("masked"),

# Where the configuration divides features and generated images among several jobs.
if configuration.shards > 1:

    rule gather_features:
        input:
            parts=parts("<results>/{dataset}/features/tokens", ".h5"),
            records=parts("<results>/{dataset}/features/features", ".run.json"),
        output:
            tokens="<results>/{dataset}/features/tokens.h5",
            run="<results>/{dataset}/features/features.run.json",
        log:
            "<results>/{dataset}/logs/gather_features.log",
        conda:
            "../envs/mirage.yaml"
        params:
            out=subpath(output.tokens, parent=True),
            code=code_hash("gather"),
        message:
            "{wildcards.dataset}: putting together the parts of {output.tokens}"
        shell:
            "python -m mirage_steps.gather --parts {input.parts:q} --out {params.out:q}"
            " 2>&1 | (trap '' INT TERM; exec tee {log:q})"

    use rule gather_features as gather_crop_features with:
        input:
            parts=parts("<results>/{dataset}/crop_features/tokens", ".h5"),
            records=parts("<results>/{dataset}/crop_features/features", ".run.json"),
        output:
            tokens=temp("<results>/{dataset}/crop_features/tokens.h5"),
            run="<results>/{dataset}/crop_features/features.run.json",
        log:
            "<results>/{dataset}/logs/gather_crop_features.log",

    use rule gather_features as gather_views with:
        input:
            parts=parts("<results>/{dataset}/sets/{kind}/images", ".h5"),
            records=parts("<results>/{dataset}/sets/{kind}/views", ".run.json"),
        output:
            tokens="<results>/{dataset}/sets/{kind}/images.h5",
            picture="<results>/{dataset}/sets/{kind}/images.png",
            run="<results>/{dataset}/sets/{kind}/views.run.json",
        log:
            "<results>/{dataset}/logs/gather_views-{kind}.log",
        wildcard_constraints:
            kind="|".join(GENERATED),

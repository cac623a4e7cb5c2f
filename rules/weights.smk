# Published networks, each fetched once into one folder that projects may share.
# On the machine where Snakemake runs: a cluster's nodes often have no network.
rule weights:
    output:
        run="<results>/weights/{network}/weights.run.json",
    log:
        "<results>/weights/{network}/weights.log",
    # First of all: what cannot be fetched shows at once.
    priority: 20
    localrule: True
    conda:
        "../envs/mirage.yaml"
    params:
        **step(
            "weights",
            network=lambda wildcards: wildcards.network,
            setting=lambda wildcards, output: network_setting(wildcards),
        ),
        # Changes when a network was deleted after it had been fetched.
        state=network_state,
    message:
        "fetching {wildcards.network}"
    shell:
        RUN

# Published networks, each downloaded once into a folder that projects may share.
# Runs where Snakemake runs: nodes of a cluster often have no network.
rule weights:
    output:
        run="<results>/weights/{network}/weights.run.json",
    log:
        "<results>/weights/{network}/weights.log",
    # First of all: a failed download shows at once.
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
        # Changes when a downloaded network was deleted.
        state=network_state,
    message:
        "downloading {wildcards.network}"
    shell:
        RUN

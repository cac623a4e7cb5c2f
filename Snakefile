# From a folder of images to fid.txt. One file of rules a phase, in the order they run.
from snakemake.utils import min_version

min_version("9.20")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/poses.smk"
include: "rules/training.smk"
include: "rules/views.smk"
include: "rules/scores.smk"
include: "rules/stand_ins.smk"
include: "rules/docs.smk"


rule all:
    default_target: True
    input:
        expand("<results>/{dataset}/fid.txt", dataset=configuration.datasets),
        expand("<results>/{dataset}/sheet/contact_sheet.png", dataset=configuration.datasets),
        expand("<results>/{dataset}/poses/pose_eval.json", dataset=configuration.datasets),
    localrule: True


rule demo:
    input:
        "<results>/demo/fid.txt",
        "<results>/demo/sheet/contact_sheet.png",
        "<results>/demo/poses/pose_eval.json",
    localrule: True

"""All built-in named things: a literal table, so that listing them imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """Where a named thing lives, and one line of help."""

    path: str
    help: str


TASKS = {
    "binary": Entry("polytask.tasks.binary:binary", "Two classes, one logit."),
    "multiclass": Entry("polytask.tasks.multiclass:multiclass", "One of several classes, one logit each."),
    "multilabel": Entry("polytask.tasks.multilabel:multilabel", "Several yes-or-no labels, one logit each."),
    "regression": Entry("polytask.tasks.regression:regression", "A real number, standardised inside."),
    "counts": Entry("polytask.tasks.counts:counts", "A count, with a Poisson log-rate."),
    "ordinal": Entry("polytask.tasks.ordinal:ordinal", "Ordered classes, cumulative logits."),
    "segmentation": Entry("polytask.tasks.segmentation:segmentation", "A class for every pixel, one logit each."),
    "detection": Entry("polytask.tasks.detection:detection", "Boxes with a class, any number of them in an image."),
    "dense_regression": Entry(
        "polytask.tasks.dense_regression:dense_regression",
        "A real number for every pixel, such as depth, standardised inside.",
    ),
    "tagging": Entry(
        "polytask.tasks.tagging:tagging",
        "One tag for every word of a text: names and slots, phrases, parts of speech.",
    ),
    "embedding": Entry(
        "polytask.tasks.embedding:embedding",
        "A vector a row, near to those of rows that belong together: for retrieval.",
    ),
}

ENCODERS = {
    "mlp": Entry("polytask.models.encoders.mlp:MLP", "Fully connected layers over one vector a row."),
    "tabular": Entry("polytask.models.encoders.tabular:Tabular", "Numbers and categories of a table, then an MLP."),
    "convnet": Entry("polytask.models.encoders.convnet:ConvNet", "A small convolutional network for images."),
    "resnet18": Entry("polytask.models.encoders.resnet:resnet18", "ResNet-18 for arrays of images."),
    "resnet34": Entry("polytask.models.encoders.resnet:resnet34", "ResNet-34 for arrays of images."),
    "mobilenet_v2": Entry("polytask.models.encoders.mobilenet:MobileNetV2", "MobileNetV2 for arrays of images."),
    "fpn": Entry(
        "polytask.models.encoders.fpn:FPN", "A feature pyramid over a backbone's stages, merged into one map."
    ),
    "bilstm": Entry(
        "polytask.models.encoders.bilstm:BiLSTM", "Words and their characters, then LSTMs in both directions."
    ),
    "hub": Entry(
        "polytask.models.encoders.hub:hub",
        "A pretrained model for the one column of a table: text, images or sounds.",
    ),
    "fusion": Entry(
        "polytask.models.encoders.fusion:Fusion",
        "An encoder for each column of texts, images or sounds, one for the rest of a table, and dense layers.",
    ),
}

SHARINGS = {
    "hard": Entry("polytask.sharing.hard:Hard", "One trunk for all tasks, optionally with private layers."),
    "separate": Entry("polytask.sharing.separate:Separate", "One network a task: the single-task baseline."),
    "mmoe": Entry(
        "polytask.sharing.mmoe:MMoE",
        "Multi-gate mixture of experts: shared experts, and one gate a task that mixes them.",
    ),
    "cgc": Entry(
        "polytask.sharing.cgc:CGC",
        "Customized gate control: a task's gate mixes shared experts and experts of its own.",
    ),
    "ple": Entry(
        "polytask.sharing.ple:PLE",
        "Progressive layered extraction: customized gate control in levels, with a shared gate between them.",
    ),
    "dselect_k": Entry(
        "polytask.sharing.dselect_k:DSelectK",
        "Mixture of experts with sparse gates that are smooth: each of k selectors settles on one expert.",
    ),
    "cross_stitch": Entry(
        "polytask.sharing.cross_stitch:CrossStitch",
        "One tower a task, joined after the stages by units that mix the towers' activations.",
    ),
    "sluice": Entry(
        "polytask.sharing.sluice:Sluice",
        "One tower a task; units mix subspaces of the towers' activations, and each task mixes its tower's layers.",
    ),
    "film": Entry(
        "polytask.sharing.film:FiLM", "One trunk whose channels each task scales and shifts, as its embedding says."
    ),
    "adapters": Entry(
        "polytask.sharing.adapters:Adapters", "One trunk with a narrow residual layer for each task after its stages."
    ),
    "lora": Entry(
        "polytask.sharing.lora:LoRA", "One trunk whose linear layers have a correction of low rank for each task."
    ),
    "task_routing": Entry(
        "polytask.sharing.task_routing:TaskRouting",
        "One trunk in which each task uses some channels: those that all share, and some of its own.",
    ),
    "soft": Entry(
        "polytask.sharing.soft:Soft",
        "One network a task; a penalty on the distance of their weights is all that they share.",
    ),
    "attention": Entry(
        "polytask.sharing.attention:TaskAttention",
        "One trunk, over whose features each task attends with a query of its own.",
    ),
    "hierarchical": Entry(
        "polytask.sharing.hierarchical:Hierarchical",
        "One trunk, and layers for each task that also read the features of the tasks below it.",
    ),
    "mtan": Entry(
        "polytask.sharing.mtan:MTAN", "One trunk, and for each task masks in [0, 1] over what its stages return."
    ),
    "ltb": Entry(
        "polytask.sharing.ltb:LTB",
        "Several copies of every stage; each copy, and each task, learns which copy of the stage before it to read.",
    ),
    "esmm": Entry(
        "polytask.sharing.esmm:ESMM",
        "Towers on common embeddings; a step's probability is the product of its own and those of the steps before.",
    ),
    "aitm": Entry(
        "polytask.sharing.aitm:AITM",
        "Towers on common embeddings; each step of a funnel attends to what the step before it hands on.",
    ),
}

BALANCERS: dict[str, Entry] = {
    "equal": Entry("polytask.balancing.loss.fixed:Equal", "The plain sum of the losses: every weight is one."),
    "static": Entry("polytask.balancing.loss.fixed:Static", "The weights that you give, one a task."),
    "rlw": Entry("polytask.balancing.loss.fixed:RLW", "Random loss weighting: fresh random weights in every step."),
    "uncertainty": Entry(
        "polytask.balancing.loss.uncertainty:Uncertainty", "Weights from a learned noise level of every task."
    ),
    "uw_so": Entry(
        "polytask.balancing.loss.uncertainty:UWSO",
        "Softmax of the inverse losses: the best noise levels in closed form, softened.",
    ),
    "bayesian": Entry(
        "polytask.balancing.loss.uncertainty:Bayesian",
        "Weights drawn from a posterior over every task's log-precision.",
    ),
    "learned": Entry(
        "polytask.balancing.loss.learned:Learned", "Weights trained on the total, on a simplex with a floor."
    ),
    "imtl_l": Entry(
        "polytask.balancing.loss.learned:IMTLL", "IMTL-L: learned scales that make all scaled losses equal."
    ),
    "gls": Entry(
        "polytask.balancing.loss.scalarization:GLS", "Geometric loss strategy: the geometric mean of the losses."
    ),
    "stch": Entry(
        "polytask.balancing.loss.scalarization:STCH",
        "Smooth Tchebycheff scalarisation: a soft maximum of the weighted losses.",
    ),
    "dwa": Entry(
        "polytask.balancing.loss.progress:DWA", "Dynamic weight average: more weight where the loss has fallen least."
    ),
    "igb": Entry(
        "polytask.balancing.loss.progress:IGB",
        "Improvable gap balancing, version 1: more weight where the loss is still near its early level.",
    ),
    "famo": Entry(
        "polytask.balancing.loss.famo:FAMO",
        "Fast adaptive multitask optimization: lower all log losses at the same rate.",
    ),
    "go4align": Entry(
        "polytask.balancing.loss.go4align:GO4Align", "Group optimization for alignment: similar tasks share one weight."
    ),
    "ldc_mtl": Entry(
        "polytask.balancing.loss.discrepancy:LDCMTL",
        "Loss discrepancy control: learned weights, and a penalty on the differences of neighbouring losses.",
    ),
    "auto_lambda": Entry(
        "polytask.balancing.loss.auto_lambda:AutoLambda",
        "Auto-Lambda: weights trained on what a step with them does to the losses of other rows.",
    ),
    "gradnorm": Entry(
        "polytask.balancing.loss.gradnorm:GradNorm", "GradNorm: equal gradient norms, larger where training lags."
    ),
    "sum": Entry("polytask.balancing.gramian.plain:Sum", "The sum of the tasks' gradients."),
    "mean": Entry("polytask.balancing.gramian.plain:Mean", "The mean of the present tasks' gradients."),
    "mgda": Entry(
        "polytask.balancing.gramian.minnorm:MGDA",
        "Multiple-gradient descent: the shortest vector in the hull of the gradients.",
    ),
    "cagrad": Entry(
        "polytask.balancing.gramian.cagrad:CAGrad",
        "The direction near the mean gradient whose worst task improves most.",
    ),
    "conicgrad": Entry(
        "polytask.balancing.gramian.conic:ConicGrad",
        "The direction in a cone around the mean gradient whose worst task improves most.",
    ),
    "nash_mtl": Entry(
        "polytask.balancing.gramian.barrier:NashMTL",
        "The Nash bargaining solution: each task's weight is one over its own progress.",
    ),
    "fairgrad": Entry(
        "polytask.balancing.gramian.barrier:FairGrad",
        "The alpha-fair direction: from the plain sum of progress to the worst task's.",
    ),
    "upgrad": Entry(
        "polytask.balancing.gramian.cone:UPGrad",
        "The mean of the gradients, each first projected so that it conflicts with none.",
    ),
    "dualproj": Entry(
        "polytask.balancing.gramian.cone:DualProj", "The mean gradient, projected so that it conflicts with none."
    ),
    "sdmgrad": Entry(
        "polytask.balancing.gramian.minnorm:SDMGrad",
        "Direction-oriented descent: the shortest vector in a hull moved towards the mean gradient.",
    ),
    "pcd": Entry(
        "polytask.balancing.gramian.priority:PCD",
        "Follow one task's gradient while every other task keeps a share of its progress.",
    ),
    "pcgrad": Entry(
        "polytask.balancing.gradient.pairwise:PCGrad",
        "Project each gradient off the others that it conflicts with, and add up what is left.",
    ),
    "gradvac": Entry(
        "polytask.balancing.gradient.pairwise:GradVac",
        "Pull gradients together until their cosines reach what is usual for the pair.",
    ),
    "imtl_g": Entry(
        "polytask.balancing.gradient.axes:IMTLG",
        "IMTL-G: the update whose projections on all gradients' directions are equal.",
    ),
    "imtl": Entry(
        "polytask.balancing.gradient.axes:IMTL",
        "IMTL: learned loss scales, and for the shared parameters equal projections of the scaled gradients.",
    ),
    "config": Entry(
        "polytask.balancing.gradient.axes:ConFIG",
        "A direction at equal angles to all gradients, as long as their projections on it together.",
    ),
    "aligned_mtl": Entry(
        "polytask.balancing.gradient.axes:AlignedMTL",
        "Bring the principal axes of the gradients to one length, then add the gradients up.",
    ),
    "krum": Entry(
        "polytask.balancing.gradient.robust:Krum",
        "Keep the gradients that lie nearest to their neighbours, and take their mean.",
    ),
    "trimmed_mean": Entry(
        "polytask.balancing.gradient.robust:TrimmedMean",
        "The mean of every coordinate without its smallest and largest values.",
    ),
    "graddrop": Entry(
        "polytask.balancing.gradient.robust:GradDrop",
        "Keep one sign per coordinate, drawn by how much the gradients agree on it.",
    ),
    "db_mtl": Entry(
        "polytask.balancing.gradient.averaged:DBMTL",
        "Dual balancing: averaged gradients of log losses, all brought to the largest norm, then added up.",
    ),
    "moco": Entry(
        "polytask.balancing.gradient.averaged:MoCo",
        "Multi-objective gradient correction: tracked gradients, with weights that descend on the simplex.",
    ),
    "modo": Entry(
        "polytask.balancing.gradient.sampled:MoDo",
        "Double sampling: weights that descend on the simplex by the gradients of two independent half batches.",
    ),
    "excess_mtl": Entry(
        "polytask.balancing.gradient.averaged:ExcessMTL",
        "More weight for tasks that are still far from their optimum, by an estimate of the excess risk.",
    ),
    "cr_mogm": Entry(
        "polytask.balancing.gradient.smoothed:CRMOGM",
        "Weights of another method, averaged over the steps so that noise does not turn them about.",
    ),
}

SAMPLERS = {
    "proportional": Entry("polytask.data.sampling:proportional", "Each task as often as it has rows."),
    "uniform": Entry("polytask.data.sampling:uniform", "Every task equally often."),
    "sqrt": Entry("polytask.data.sampling:sqrt", "In proportion to the square root of the rows."),
    "temperature": Entry("polytask.data.sampling:temperature", "In proportion to rows ** (1 / T)."),
    "annealed": Entry("polytask.data.sampling:annealed", "From proportional to uniform over the run."),
    "loss_driven": Entry("polytask.data.sampling:loss_driven", "More often where the loss has fallen least."),
    "round_robin": Entry("polytask.data.sampling:round_robin", "The tasks in turn, one a step."),
    "together": Entry("polytask.data.sampling:together", "A batch of every task in every step."),
}

STRATEGIES = {
    "joint": Entry("polytask.training.strategies:Joint", "Every step updates everything."),
    "alternating": Entry(
        "polytask.training.strategies:Alternating",
        "The shared part with the heads fixed, then the heads with the shared part fixed.",
    ),
    "hierarchical": Entry(
        "polytask.training.strategies:Hierarchical",
        "Some tasks first, then those that build on them: by levels on every batch, or by phases.",
    ),
    "finetune": Entry(
        "polytask.training.joint_then:Finetune",
        "All tasks together, then each head by itself, or the whole network for one task.",
    ),
}

DATASETS = {
    "census_income": Entry("polytask.data.datasets.census_income:load", "Census-Income (KDD), 299,285 people."),
    "yeast": Entry("polytask.data.datasets.yeast:load", "Yeast, 2,417 genes with 14 labels."),
    "multi_fashion": Entry(
        "polytask.data.datasets.multi_fashion:load", "Two garments of Fashion-MNIST in one picture, 70,000 pictures."
    ),
    "multi_mnist": Entry(
        "polytask.data.datasets.multi_mnist:load", "Two digits of MNIST in one picture, 10,000 pictures."
    ),
    "atis": Entry("polytask.data.datasets.atis:load", "ATIS: intents and slots of 5,871 questions about flights."),
    "conll2003": Entry(
        "polytask.data.datasets.conll2003:load",
        "CoNLL-2003 English: parts of speech, phrases and names of 20,744 news sentences.",
    ),
    "people_daily": Entry(
        "polytask.data.datasets.chinese:people_daily",
        "Chinese news of January 1998: words, parts of speech and names of 47,832 sentences.",
    ),
    "chinese_reviews": Entry(
        "polytask.data.datasets.chinese:reviews", "Chinese reviews, positive and negative, 17,359 without copies."
    ),
    "tree_crowns": Entry(
        "polytask.data.datasets.tree_crowns:load", "Boxes of tree crowns in four aerial pictures, as 413 tiles."
    ),
    "shapes": Entry(
        "polytask.data.datasets.shapes:load", "Scenes of garments and emoji with boxes and masks, 5,500 pictures."
    ),
}

GROUPS: dict[str, dict[str, Entry]] = {
    "tasks": TASKS,
    "encoders": ENCODERS,
    "sharings": SHARINGS,
    "balancers": BALANCERS,
    "samplers": SAMPLERS,
    "strategies": STRATEGIES,
    "datasets": DATASETS,
}

"""BSE-VoxNets Moderate on the paper's data set: the complete configuration, which all others change.

Sources: [P] Zheng et al. 2024; [C] our choice where the paper gives nothing. Every key can be set on the
command line, as in `--config.phase1.learning_rate=3e-4`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the initial weights, the order of the examples, augmentation and dropout

    config.task = "volumes"  # from images; or images, the image model, from volumes

    config.data = data = ConfigDict()
    data.config = "paper"  # configuration of the data set bse_voxels, or a file *.npz in data_dir
    data.also = ()  # more data sets of the same dose and energies, whose splits join the training split
    # Data set whose validation split judges the weights, or shows an image model its errors; "": data.config.
    data.held_out = ""
    data.test_config = ""  # the same for --mode=evaluate, whose split test it takes; "": that of data.config
    data.data_dir = "data"  # folder of the data sets; a missing one is simulated into it
    data.batch_size = 128  # examples per step over all devices [C]; divisible by their number
    data.normalise = "standardise"  # yields per energy, by mean and std of the training split; or none [C]
    data.symmetries = False  # one of the eight of the square per example and step; the paper has none
    data.lowest_dose_fraction = (
        1.0  # an example keeps a log-uniform fraction of its dose from here to 1; 1: off
    )
    data.source = "counts"  # of training: those of the data set; or forward, specimens drawn on the fly

    # Of the source forward: images of random specimens by the image model, as a microscope records them, anew
    # in every step. The data set still gives the normalisation and validates. Ranges are lowest, highest.
    data.forward = forward = ConfigDict()
    forward.model = ""  # folder of an exported image model; "": the one shipped with the project
    forward.specimens = 8192  # of an epoch
    forward.fresh = 1024  # how many of them the epoch before did not have; 0: always the same
    forward.textures = 0.0  # share of specimens of no family: waves, sponges, single voxels
    forward.stacks = 0.0  # share of specimens with bodies below each other, of which the families have few
    forward.lowest_electrons_per_pixel = 50.0  # the dose of an example is log-uniform from here
    forward.highest_electrons_per_pixel = 1000.0  # to here
    forward.thickness_nm = (20.0, 20.0)  # of the film, vacuum below; the depth of the volume: no film
    forward.relief_nm = (0.0, 0.0)  # twice the mean depth and the standard deviation of a rough surface
    forward.probe_fwhm_nm = (0.0, 0.0)  # full width at half maximum of a Gaussian probe
    forward.drift_nm = 0.0  # standard deviation of the step from one energy to the next, along y and x
    forward.gain_error = 0.0  # relative standard deviation of the signal, per energy
    forward.offset_error = 0.0  # standard deviation of the offset per energy, as a yield
    forward.noise_electrons = 0.0  # standard deviation of the detector's noise per count
    forward.energy_error = 0.0  # relative standard deviation of the scale of the beam energies
    forward.missing = 0.0  # largest share of the energies that an example lacks; every second lacks none

    config.simulator = simulator = ConfigDict()  # of the data set
    simulator.kind = "bsevox"  # or nebula, which needs what follows only to build a missing data set
    simulator.binary = ""  # its program nebula_gpu or nebula_cpu_mt
    simulator.materials = ()  # its material files of Si and Cu; none: written from our cross sections
    simulator.arguments = ""  # more options of its command line, as "--capacity 2000000"

    config.model = model = ConfigDict()  # fields of the network's class
    model.name = "bsevoxnet"  # bsevoxnet, compact or unet3d
    model.widths = (384, 768)  # channels of the two stages [P, Table 1]
    model.blocks = (10, 17)  # S2-MLP blocks of the two stages [P, Table 1]
    model.dropout = 0.0  # rate in every ConvFFN; the paper gives none [C]
    model.sope = True  # False: without the patch embedding of the paper (ablation)
    model.s2 = True  # False: without S2-MLP blocks (ablation)
    model.conv_ffn = True  # False: plain FFN (ablation)
    model.conv_impl = "auto"  # auto: convolutions as the backend runs them fastest; direct, rewrite
    model.dtype = "float32"  # of the computation; bfloat16 halves the memory, parameters stay float32

    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # [P]; or muon for the kernels of convolutions, and Adam for all else
    optim.b1 = 0.9  # decay of the mean of the gradient, the usual value [C]
    optim.b2 = 0.999  # decay of the mean of its square, the usual value [C]
    optim.eps = 1e-8  # added to the root of the latter, the usual value [C]
    optim.weight_decay = 1e-4  # of weights with two and more dimensions [P; C: biases and norms are spared]
    optim.warmup_epochs = 1  # of each phase, with the learning rate rising linearly [C]
    optim.average_decay = 0.0  # of the moving average of the weights that is evaluated; 0: no averaging

    config.phase1 = phase1 = ConfigDict()  # weighted cross-entropy [P]
    phase1.epochs = 200  # of the paper's 250; it does not give the split between the phases [C]
    phase1.learning_rate = 1e-4  # at the end of the warm-up [P]
    phase1.final_learning_rate = 1e-6  # at the end of the cosine [C]
    phase1.loss = ConfigDict()  # arguments of losses.weighted_cross_entropy
    phase1.loss.mode = "class_weighted"  # the reading of Eq. (1) in which lam balances the classes [C]
    phase1.loss.lam = 1 / 12  # weight of not-Cu, 1 - lam that of Cu [P]
    phase1.loss.normalise = "weight_sum"  # divide by the applied weights, or by the voxels: n [C]

    config.phase2 = phase2 = ConfigDict()  # Lovasz, from the best weights of phase 1 with a new optimiser [P]
    phase2.epochs = 50  # of the paper's 250 [C]
    phase2.learning_rate = 3e-5  # fine-tuning [C]
    phase2.final_learning_rate = 1e-7  # [C]
    phase2.loss = ConfigDict()  # arguments of losses.lovasz
    phase2.loss.kind = "softmax"  # or hinge; softmax fits a network with two classes [C]
    phase2.loss.classes = "present"  # mean over the classes in the batch, or cu; the published default
    phase2.loss.per_sample = (
        False  # True: one loss per volume, as the metric; False: voxels of a batch pooled
    )
    phase2.loss.cross_entropy = 0.0  # weight of the plain cross-entropy beside it

    # Folder of an exported network of the same fields whose weights to begin with; "": random ones. With
    # phase1.epochs = 0 the Lovasz loss goes on from there.
    config.start_from = ""
    config.shipped = ""  # name of the shipped network that serves where no run is given; "": model.name
    config.eval_every_epochs = 5  # epochs between validations and checkpoints [P]
    config.early_stop_epochs = 100  # a phase ends when the validation loss has not fallen for so long [P]
    return config

"A sampler from outside the package, for the tests: `sampler='double_batches:DoubleBatches'`."
from clip_dfgs.sampling.samplers import PKSampler


class DoubleBatches(PKSampler):
    "Two neighboring batches of PK as one: what two processes have between them."
    def plan(self, epoch):
        batches = super().plan(epoch)
        return batches[:len(batches)//2*2].reshape(len(batches)//2, -1)

    def __iter__(self): return iter(self.planned().tolist())

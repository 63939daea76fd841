"The extractor of the small CLIP, which the tests of galleries share."
import pytest


@pytest.fixture(scope='session')
def extract():
    from clip_dfgs.inference.embed import FeatureExtractor
    from clip_dfgs.models.reid_model import ReIDModel
    return FeatureExtractor(ReIDModel.create('pedestrians', 'pedestrians'), device='cpu')

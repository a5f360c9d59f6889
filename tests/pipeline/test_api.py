import vitslim
from tests.pipeline.tiny import IMAGES, MODEL
from vitslim.train import TrainResult


def test_training_a_student_tells_how_it_went() -> None:
    """Both ways of training change the student in place and give back their result."""
    options = {"img_size": 32, "num_classes": 4, **MODEL["options"]}
    teacher = vitslim.open_model("builtin", pretrained=False, **options)
    student = vitslim.convert(teacher, "skipat", layers=[2])
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    plain = {"batch_size": 8, "tensorboard": False, "precision": "fp32"}
    fitted = vitslim.warm_start(student, teacher, IMAGES, steps=1, **plain)
    trained = vitslim.distill(student, teacher, IMAGES, steps=2, validate=False, **plain)
    assert isinstance(fitted, TrainResult)
    assert isinstance(trained, TrainResult)
    assert (trained.stage, trained.steps, trained.stopped) == ("distill", 2, "finished")
    assert trained.losses["kd"] > 0
    assert any(not tensor.equal(before[name]) for name, tensor in student.state_dict().items())

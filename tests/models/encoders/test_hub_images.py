"""Pretrained image models of tiny random weights, saved to a folder as people have them."""

import json

import polars as pl
import pytest
import torch

import polytask as pt
from polytask import registry, sharing
from polytask.data.pretrained import read_image_settings
from polytask.data.schema import ImageColumn, TableSchema
from polytask.errors import DataError, RecipeError
from polytask.models import MultiTaskModel
from polytask.models.encoders import hub
from polytask.recipes.build import build
from polytask.recipes.load import load_recipe
from polytask.tasks import binary, segmentation

SIZE = 32
VIT = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
PATCHED = VIT | {"image_size": SIZE, "patch_size": 8}
MADE = {
    "vit": PATCHED,
    "deit": PATCHED,
    "dinov2": {**VIT, "image_size": SIZE, "patch_size": 8, "mlp_ratio": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], "layer_type": "basic"},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], "groups_width": 4},
    "convnext": {"hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], "num_stages": 3},
    "swin": {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2],
             "window_size": 4},
}  # fmt: skip
WITH_TOKEN = ("vit", "deit", "dinov2")
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": SIZE, "width": SIZE}, "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3], "do_rescale": True, "rescale_factor": 1 / 255,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    import transformers

    found = {}
    for kind, options in MADE.items():
        found[kind] = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **options)
        transformers.AutoModel.from_config(config).save_pretrained(found[kind])
        (found[kind] / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return found


def schema(size=(SIZE, SIZE), channels=3):
    return TableSchema(images=(ImageColumn("photo", size, channels),))


def photos(rows=2, size=(SIZE, SIZE)):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (rows, 3, *size), generator=generator, dtype=torch.uint8)


def whole(folder, images, **options):
    """What the package itself makes of images: its processor, then its model."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    values = processor(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return transformers.AutoModel.from_pretrained(folder).eval()(values, **options)


@pytest.mark.parametrize("kind", MADE)
def test_features_are_those_of_the_model_after_its_processor(kind, folders):
    images = photos()
    expected = whole(folders[kind], images)
    state = expected.last_hidden_state
    encoder = hub(schema(), str(folders[kind])).eval()
    mapped = hub(schema(), str(folders[kind]), pool="map").eval()
    with torch.no_grad():
        vector, maps = encoder(images), mapped(images)
    assert vector.shape == (2, encoder.out_features)
    assert tuple(maps.shape[1:]) == mapped.out_features
    if kind in WITH_TOKEN:
        torch.testing.assert_close(vector, state[:, 0], rtol=1e-3, atol=1e-4)
        patches = state[:, 2 if kind == "deit" else 1 :]
        torch.testing.assert_close(maps.flatten(2).transpose(1, 2), patches, rtol=1e-3, atol=1e-4)
    else:
        torch.testing.assert_close(vector, expected.pooler_output.flatten(1), rtol=1e-3, atol=1e-4)
        spatial = state if state.dim() == 4 else state.transpose(1, 2).reshape(maps.shape)
        torch.testing.assert_close(maps, spatial, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", MADE)
def test_gradients_reach_every_parameter_and_a_mark_makes_it_again(kind, folders):
    encoder = hub(schema(), str(folders[kind]), pool="mean" if kind not in WITH_TOKEN else "first")
    encoder(photos()).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    mark = json.loads(json.dumps(registry.mark_of(encoder)))
    assert str(folders[kind]) not in json.dumps(mark)
    again = registry.build("encoders", mark["name"], mark["options"], schema=schema())
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.eval()(photos()), encoder.eval()(photos()))


KEEPS_MAPS = {
    "hard": {}, "separate": {}, "mmoe": {}, "cgc": {}, "ple": {}, "dselect_k": {}, "cross_stitch": {}, "sluice": {},
    "film": {}, "adapters": {}, "task_routing": {}, "soft": {}, "mtan": {}, "ltb": {},
    "hierarchical": {"feeds": {"good": ["parts"]}, "layers": [6]}, "lora": {"rank": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", KEEPS_MAPS)
@pytest.mark.parametrize("kind", ["vit", "swin", "convnext"])
def test_every_sharing_works(kind, name, folders):
    encoder = hub(schema(), str(folders[kind]), pool="map")
    made = registry.build("sharings", name, KEEPS_MAPS[name], encoder=encoder)
    tasks = [segmentation("parts", ["a", "b"], size=[SIZE, SIZE]), binary("good")]
    if name == "hierarchical":
        tasks = [binary("parts"), binary("good")]
    model = MultiTaskModel(made, tasks, example=photos())
    found = model(photos())
    assert found["good"].shape == (2,)
    sum(output.sum() for output in found.values()).backward()


def test_fewer_layers_and_other_sizes(folders):
    short = hub(schema(), str(folders["vit"]), layers=2)
    assert len(short.stages) == 2
    cut = hub(schema(), str(folders["convnext"]), layers=1)
    assert cut(photos()).shape == (2, 8)
    images = photos(size=(40, 24))
    found = hub(schema((40, 24)), str(folders["vit"]), pool="map").eval()(images)
    assert found.shape == (2, 12, 5, 3)
    expected = whole_of_any_size(folders["vit"], images)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected[:, 1:], rtol=1e-3, atol=1e-4)
    assert hub(schema((40, 24)), str(folders["resnet"]))(images).shape == (2, 16)


def whole_of_any_size(folder, images):
    import transformers

    mean, deviation = (torch.tensor(PROCESSOR[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        return model((images / 255 - mean) / deviation, interpolate_pos_encoding=True).last_hidden_state


def test_what_a_processor_says(tmp_path):
    def settings(**said):
        plain = {"image_processor_type": "CLIPImageProcessor", **said}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(plain))
        return read_image_settings(str(tmp_path))

    found = settings(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 200}, do_center_crop=True)
    assert found["size"] == [224, 200]
    assert found["scale"] == pytest.approx(1.0)
    found = settings(size={"shortest_edge": 64}, do_center_crop=False, do_normalize=False, do_rescale=False)
    assert (found["size"], found["scale"], found["mean"], found["std"]) == ([64, 64], 255.0, [0.0], [1.0])
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"needs config.json, model.safetensors and preprocessor_config.json"):
        read_image_settings(str(tmp_path))


def test_wrong_options_and_models_are_named(folders, tmp_path):
    vit = str(folders["vit"])
    for options, text in (
        ({"pool": "middle"}, "pool is 'middle'. Use one of: first, mean, max, map"),
        ({"layers": 9}, r"layers is 9; .* has 3"),
        ({"case": True}, "case is for texts"),
    ):
        with pytest.raises(RecipeError, match=text):
            hub(schema(), vit, **options)
    with pytest.raises(RecipeError, match=r"pool is 'first'. Use one of: mean, max, map"):
        hub(schema(), str(folders["resnet"]), pool="first")
    with pytest.raises(RecipeError, match=r"reads images with 3 channels; the column has 1. Say colour: rgb"):
        hub(schema(channels=1), vit)
    with pytest.raises(RecipeError, match=r"cannot read images of 4 x 4 pixels: .* size, such as .* size: \[32, 32\]"):
        hub(schema((4, 4)), vit)
    with pytest.raises(RecipeError, match=r"hub needs model"):
        hub(schema())
    with pytest.raises(DataError, match=r"'hub' reads one column .* the inputs are: a, b"):
        hub(TableSchema(images=(ImageColumn("a", (8, 8), 3), ImageColumn("b", (8, 8), 3))), vit)
    with pytest.raises(DataError, match=r"Column 'photo' .* shape \[3, 8\]; images are \[channels"):
        hub(TableSchema(arrays={"photo": (3, 8)}), vit)


def test_models_of_another_build_are_refused(tmp_path, folders):
    import transformers

    transformers.MobileNetV2Model(transformers.MobileNetV2Config(depth_multiplier=0.1)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with pytest.raises(RecipeError, match=r"For images, hub runs models .* ViT.* of the type 'mobilenet_v2'"):
        hub(schema(), str(tmp_path))


@pytest.fixture
def table(tmp_path):
    """Pictures that are bright or dark, and red or blue; of another size than the model reads."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(96):
        bright, red = torch.randint(0, 2, (2,), generator=generator).tolist()
        colour = [60 + 120 * bright] * 3
        colour[0 if red else 2] += 60
        Image.new("RGB", (20, 20), tuple(colour)).save(tmp_path / f"{number}.png")
        rows.append({"photo": f"{number}.png", "bright": bright, "red": red})
    pl.DataFrame(rows).write_csv(tmp_path / "photos.csv")
    return tmp_path / "photos.csv"


def test_a_recipe_trains_on_it_and_its_bundle_needs_no_model(table, folders, tmp_path, monkeypatch):
    kept = tmp_path / "vit"
    folders["vit"].rename(kept)
    try:
        recipe = {
            "data": {"table": str(table)},
            "inputs": {"photo": "image"},
            "tasks": {"bright": {"type": "binary"}, "red": {"type": "binary"}},
            "model": {"encoder": {"name": "hub", "model": str(kept)}},
            "training": {
                "epochs": 10, "batch_size": 16, "lr": 0.005, "device": "cpu", "unfreeze_every": 2,
                "rates": {"encoder": 0.5, "layer_decay": 0.9},
            },
        }  # fmt: skip
        run = pt.run(recipe, out=tmp_path / "run", progress=False)
    finally:
        kept.rename(folders["vit"])
    assert run.scores["bright"]["auroc"] > 0.95
    assert run.scores["red"]["auroc"] > 0.95
    predictor = pt.load(tmp_path / "run" / "bundle")
    assert predictor.preprocessor.schema.images[0].size == (SIZE, SIZE)
    found = predictor.predict(table)
    assert (found["bright"] == pl.read_csv(table)["bright"]).mean() > 0.9


def test_as_a_part_of_fusion_its_size_is_found(table, folders):
    recipe = {
        "data": {"table": str(table)},
        "inputs": {"photo": "image", "number": "category"},
        "tasks": {"red": {"type": "binary"}},
        "model": {"encoder": {"name": "fusion", "parts": {"photo": {"name": "hub", "model": str(folders["swin"])}}}},
    }
    frame = pl.read_csv(table)
    frame.with_columns(number=pl.Series(["a", "b"] * (frame.height // 2))).write_csv(table)
    built = build(load_recipe(recipe))
    assert built.schema.images[0].size == (SIZE, SIZE)
    inputs = built.sources["train"][0].example
    assert built.model.sharing.encoder(inputs).shape == (2, 128)


def test_freezing_low_rank_corrections_and_adapters(folders):
    data = {"x": photos(8), "good": torch.tensor([0.0, 1.0] * 4)}
    for made in (sharing.LoRA, sharing.Adapters):
        encoder = hub(schema(), str(folders["vit"]))
        before = encoder.state_dict()["stem.patch_embeddings.projection.weight"].clone()
        model = MultiTaskModel(made(encoder), [binary("good")], example=photos())
        pt.fit(model, data, epochs=1, batch_size=4, progress=False, freeze=["encoder.stem"])
        assert torch.equal(encoder.state_dict()["stem.patch_embeddings.projection.weight"], before)

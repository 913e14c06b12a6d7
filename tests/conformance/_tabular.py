"""Models that scikit-learn, LightGBM and XGBoost train in moments, converted to ONNX as their users convert them.

Strings, mappings (ZipMap) and missing values are among them, and what falls into many small operators: polynomial
features, ensembles that vote, columns that are prepared one by one. Data are drawn from fixed seeds, so the same
versions of the packages (``benchmarks/requirements-tabular.txt``) give the same models. The packages are imported when
the first model is asked for: `why_missing` says whether they are there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("sklearn", "skl2onnx", "lightgbm", "xgboost", "onnxmltools")

OPSETS = {"": 18, "ai.onnx.ml": 3}

FEATURES = 6
TRAINED_ROWS = 240
BATCHES = (1, 32)
"""Rows of the feeds that each model comes with."""

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularModel:
    """A converted model, and feeds for it: one per entry of `BATCHES`."""

    name: str
    data: bytes
    feeds: tuple[Feeds, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotConverted:
    """A model that its converter does not take in these versions."""

    name: str
    reason: str


def why_missing() -> str | None:
    """What is not installed, or None."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)} (benchmarks/requirements-tabular.txt)" if missing else None


@functools.cache
def converted() -> tuple[tuple[TabularModel, ...], tuple[NotConverted, ...]]:
    """All models, trained and converted; and those that could not be converted. Takes about a minute."""
    models, refused = [], []
    for name, make in _recipes().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence, and of what newer versions will rename
            try:
                data, feeds = make()
            except Exception as error:  # whatever a converter raises for what it does not know
                refused.append(NotConverted(name=name, reason=f"{type(error).__name__}: {str(error)[:200]}"))
                continue
        models.append(TabularModel(name=name, data=data, feeds=feeds))
    return tuple(models), tuple(refused)


# --- Data -----------------------------------------------------------------------------------------------------------


class _Data:
    """A table of numbers, one of mixed columns, and targets that depend on both."""

    def __init__(self) -> None:
        random = np.random.default_rng(11)
        self.x = random.standard_normal((TRAINED_ROWS, FEATURES)).astype(np.float32)
        self.counts = random.integers(0, 9, (TRAINED_ROWS, FEATURES)).astype(np.float32)
        self.holes = self.x.copy()
        self.holes[random.random(self.x.shape) < 0.15] = np.nan
        score = self.x[:, 0] + self.x[:, 1] * self.x[:, 2] + 0.1 * random.standard_normal(TRAINED_ROWS)
        self.number = score.astype(np.float32)
        self.two = (score > 0).astype(np.int64)
        self.three = np.digitize(score, [-0.6, 0.6]).astype(np.int64)
        self.names = np.array(["low", "middle", "high"], dtype=object)[self.three]
        self.town = np.array(["Oslo", "Łódź", "Köln", "Lima"], dtype=object)[random.integers(0, 4, TRAINED_ROWS)]
        self.colour = np.array(["red", "green", "blue"], dtype=object)[random.integers(0, 3, TRAINED_ROWS)]
        self.code = random.integers(0, 5, (TRAINED_ROWS, 1)).astype(np.int64)
        words = np.array("the a quick slow fox dog jumps over sleeps under tree river never".split(" "))  # noqa: SIM905
        self.text = np.array(
            [" ".join(words[random.integers(0, len(words), 7)]) for _ in range(TRAINED_ROWS)], dtype=object
        )
        self.both = np.stack([self.number, self.number**2 + self.x[:, 3]], axis=1)
        self.labels = np.stack([self.two, (self.x[:, 3] > 0).astype(np.int64)], axis=1)


def _batches(**columns: NDArray[Any]) -> tuple[Feeds, ...]:
    return tuple({name: np.ascontiguousarray(column[:rows]) for name, column in columns.items()} for rows in BATCHES)


# --- Recipes --------------------------------------------------------------------------------------------------------

Made = tuple[bytes, tuple[Feeds, ...]]
Recipe = Callable[[], Made]


def _to_onnx(estimator: Any, types: Sequence[tuple[str, Any]], options: Mapping[str, Any] | None = None) -> bytes:
    from skl2onnx import convert_sklearn

    asked = None if options is None else {id(estimator): dict(options)}
    with _numbers_for_booleans():
        model = convert_sklearn(estimator, initial_types=list(types), options=asked, target_opset=OPSETS)
    data: bytes = model.SerializeToString()
    return data


@contextlib.contextmanager
def _numbers_for_booleans() -> Iterator[None]:
    """While it lasts, what the converter says of missing values in a tree is a number: it writes False and True, which
    newer versions of protobuf do not take for numbers."""
    from skl2onnx.common import tree_ensemble

    add_node = tree_ensemble.add_node

    def add(*arguments: Any, nodes_missing_value_tracks_true: Any = 0, **more: Any) -> Any:
        return add_node(*arguments, nodes_missing_value_tracks_true=int(nodes_missing_value_tracks_true), **more)

    tree_ensemble.add_node = add
    try:
        yield
    finally:
        tree_ensemble.add_node = add_node


def _on_numbers(
    estimator: Any, table: NDArray[Any], target: NDArray[Any] | None, options: Mapping[str, Any] | None = None
) -> Recipe:
    """A model of one table of numbers."""

    def make() -> Made:
        from skl2onnx.common.data_types import FloatTensorType

        fitted = estimator.fit(table) if target is None else estimator.fit(table, target)
        types = [("x", FloatTensorType([None, table.shape[1]]))]
        return _to_onnx(fitted, types, options), _batches(x=table)

    return make


def _on_strings(estimator: Any, columns: Sequence[NDArray[Any]], target: NDArray[Any] | None = None) -> Recipe:
    """A model of one table of strings."""

    def make() -> Made:
        from skl2onnx.common.data_types import StringTensorType

        table = np.stack(columns, axis=1)
        fitted = estimator.fit(table) if target is None else estimator.fit(table, target)
        return _to_onnx(fitted, [("x", StringTensorType([None, len(columns)]))]), _batches(x=table)

    return make


def _on_text(estimator: Any, text: NDArray[Any], target: NDArray[Any] | None = None) -> Recipe:
    """A model of one text per row."""

    def make() -> Made:
        from skl2onnx.common.data_types import StringTensorType

        fitted = estimator.fit(text) if target is None else estimator.fit(text, target)
        return _to_onnx(fitted, [("x", StringTensorType([None, 1]))]), _batches(x=text.reshape(-1, 1))

    return make


def _on_columns(estimator: Any, data: _Data, target: NDArray[Any], options: Mapping[str, Any] | None = None) -> Recipe:
    """A pipeline over a table of mixed columns: trained on one array of objects, fed column by column."""

    def make() -> Made:
        from skl2onnx.common.data_types import FloatTensorType, StringTensorType

        table = np.concatenate(
            [data.holes.astype(object), data.town.reshape(-1, 1), data.colour.reshape(-1, 1)], axis=1
        )
        fitted = estimator.fit(table, target)
        types = [("numbers", FloatTensorType([None, FEATURES])), ("names", StringTensorType([None, 2]))]
        feeds = _batches(numbers=data.holes, names=np.stack([data.town, data.colour], axis=1))
        return _to_onnx(fitted, types, options), feeds

    return make


def _by_lightgbm(estimator: Any, table: NDArray[Any], target: NDArray[Any], *, zipmap: bool = True) -> Recipe:
    def make() -> Made:
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType

        fitted = estimator.fit(table, target)
        types = [("x", FloatTensorType([None, table.shape[1]]))]
        model = onnxmltools.convert_lightgbm(fitted, initial_types=types, target_opset=15, zipmap=zipmap)
        return model.SerializeToString(), _batches(x=table)

    return make


def _by_xgboost(estimator: Any, table: NDArray[Any], target: NDArray[Any]) -> Recipe:
    def make() -> Made:
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType

        fitted = estimator.fit(table, target)
        types = [("x", FloatTensorType([None, table.shape[1]]))]
        model = onnxmltools.convert_xgboost(fitted, initial_types=types, target_opset=15)
        return model.SerializeToString(), _batches(x=table)

    return make


def _recipes() -> dict[str, Recipe]:
    data = _Data()
    return {
        **_linear(data),
        **_trees(data),
        **_kernels_and_neighbours(data),
        **_composed(data),
        **_transformers(data),
        **_strings_and_columns(data),
        **_boosted(data),
    }


def _linear(data: _Data) -> dict[str, Recipe]:
    from sklearn import linear_model, naive_bayes, neural_network, svm

    x, two, three, number = data.x, data.two, data.three, data.number
    regressors = {
        "LinearRegression": linear_model.LinearRegression(),
        "Ridge": linear_model.Ridge(),
        "Lasso": linear_model.Lasso(alpha=0.01),
        "ElasticNet": linear_model.ElasticNet(alpha=0.01),
        "BayesianRidge": linear_model.BayesianRidge(),
        "HuberRegressor": linear_model.HuberRegressor(),
        "Lars": linear_model.Lars(),
        "SGDRegressor": linear_model.SGDRegressor(random_state=0),
        "LinearSVR": svm.LinearSVR(random_state=0),
        "MLPRegressor": neural_network.MLPRegressor(hidden_layer_sizes=(16, 8), max_iter=60, random_state=0),
    }
    classifiers = {
        "RidgeClassifier": linear_model.RidgeClassifier(),
        "SGDClassifier": linear_model.SGDClassifier(loss="log_loss", random_state=0),
        "Perceptron": linear_model.Perceptron(random_state=0),
        "LinearSVC": svm.LinearSVC(random_state=0),
        "GaussianNB": naive_bayes.GaussianNB(),
        "BernoulliNB": naive_bayes.BernoulliNB(),
        "MLPClassifier": neural_network.MLPClassifier(hidden_layer_sizes=(16, 8), max_iter=60, random_state=0),
    }
    logistic = linear_model.LogisticRegression
    return {
        **{name: _on_numbers(estimator, x, number) for name, estimator in regressors.items()},
        **{name: _on_numbers(estimator, x, three) for name, estimator in classifiers.items()},
        "PoissonRegressor": _on_numbers(linear_model.PoissonRegressor(), x, np.exp(number / 2)),
        "MultinomialNB": _on_numbers(naive_bayes.MultinomialNB(), data.counts, three),
        "ComplementNB": _on_numbers(naive_bayes.ComplementNB(), data.counts, three),
        "LogisticRegression, two classes": _on_numbers(logistic(), x, two),
        "LogisticRegression, no ZipMap": _on_numbers(logistic(), x, three, {"zipmap": False}),
        "LogisticRegression, ZipMap by columns": _on_numbers(logistic(), x, three, {"zipmap": "columns"}),
        "LogisticRegression, names for classes": _on_numbers(logistic(), x, data.names),
        "MLPClassifier, no ZipMap": _on_numbers(
            neural_network.MLPClassifier(hidden_layer_sizes=(16,), max_iter=60, random_state=1),
            x,
            two,
            {"zipmap": False},
        ),
    }


def _trees(data: _Data) -> dict[str, Recipe]:
    from sklearn import ensemble, tree

    x, three, number = data.x, data.three, data.number
    return {
        "DecisionTreeClassifier": _on_numbers(tree.DecisionTreeClassifier(max_depth=5, random_state=0), x, three),
        "DecisionTreeRegressor": _on_numbers(tree.DecisionTreeRegressor(max_depth=5, random_state=0), x, number),
        "RandomForestClassifier": _on_numbers(ensemble.RandomForestClassifier(20, random_state=0), x, three),
        "RandomForestClassifier, names": _on_numbers(
            ensemble.RandomForestClassifier(20, random_state=0), x, data.names, {"zipmap": False}
        ),
        "RandomForestRegressor": _on_numbers(ensemble.RandomForestRegressor(20, random_state=0), x, number),
        "ExtraTreesClassifier": _on_numbers(ensemble.ExtraTreesClassifier(20, random_state=0), x, three),
        "ExtraTreesRegressor": _on_numbers(ensemble.ExtraTreesRegressor(20, random_state=0), x, number),
        "GradientBoostingClassifier": _on_numbers(
            ensemble.GradientBoostingClassifier(n_estimators=15, random_state=0), x, three
        ),
        "GradientBoostingRegressor": _on_numbers(
            ensemble.GradientBoostingRegressor(n_estimators=15, random_state=0), x, number
        ),
        "HistGradientBoostingClassifier, missing values": _on_numbers(
            ensemble.HistGradientBoostingClassifier(max_iter=15, random_state=0), data.holes, three
        ),
        "HistGradientBoostingRegressor, missing values": _on_numbers(
            ensemble.HistGradientBoostingRegressor(max_iter=15, random_state=0), data.holes, number
        ),
        "AdaBoostClassifier": _on_numbers(ensemble.AdaBoostClassifier(n_estimators=8, random_state=0), x, three),
        "AdaBoostRegressor": _on_numbers(ensemble.AdaBoostRegressor(n_estimators=8, random_state=0), x, number),
        "BaggingClassifier": _on_numbers(ensemble.BaggingClassifier(n_estimators=8, random_state=0), x, three),
        "BaggingRegressor": _on_numbers(ensemble.BaggingRegressor(n_estimators=8, random_state=0), x, number),
        "IsolationForest": _on_numbers(ensemble.IsolationForest(n_estimators=10, random_state=0), x, None),
    }


def _kernels_and_neighbours(data: _Data) -> dict[str, Recipe]:
    from sklearn import cluster, gaussian_process, mixture, neighbors, svm

    x, two, three, number = data.x, data.two, data.three, data.number
    return {
        "SVC": _on_numbers(svm.SVC(), x, three),
        "SVC, polynomial": _on_numbers(svm.SVC(kernel="poly"), x, two),
        "NuSVC": _on_numbers(svm.NuSVC(nu=0.2), x, two),
        "SVR": _on_numbers(svm.SVR(), x, number),
        "NuSVR": _on_numbers(svm.NuSVR(), x, number),
        "OneClassSVM": _on_numbers(svm.OneClassSVM(), x, None),
        "KNeighborsClassifier": _on_numbers(neighbors.KNeighborsClassifier(), x, three),
        "KNeighborsRegressor": _on_numbers(neighbors.KNeighborsRegressor(), x, number),
        "KNeighborsRegressor, by distance": _on_numbers(
            neighbors.KNeighborsRegressor(weights="distance"), x, data.both
        ),
        "LocalOutlierFactor": _on_numbers(neighbors.LocalOutlierFactor(novelty=True), x, None),
        "GaussianProcessRegressor": _on_numbers(gaussian_process.GaussianProcessRegressor(random_state=0), x, number),
        "GaussianMixture": _on_numbers(mixture.GaussianMixture(3, random_state=0), x, None),
        "KMeans": _on_numbers(cluster.KMeans(4, n_init=2, random_state=0), x, None),
        "MiniBatchKMeans": _on_numbers(cluster.MiniBatchKMeans(4, n_init=2, random_state=0), x, None),
    }


def _composed(data: _Data) -> dict[str, Recipe]:
    from sklearn import calibration, ensemble, linear_model, multiclass, multioutput, naive_bayes, pipeline, tree
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    x, two, three, number = data.x, data.two, data.three, data.number
    logistic, shallow = linear_model.LogisticRegression, functools.partial(tree.DecisionTreeClassifier, max_depth=3)
    classifiers = [("l", logistic()), ("n", naive_bayes.GaussianNB()), ("t", shallow(random_state=0))]
    regressors = [
        ("l", linear_model.LinearRegression()),
        ("r", linear_model.Ridge()),
        ("t", tree.DecisionTreeRegressor(max_depth=3, random_state=0)),
    ]
    many = [(f"t{seed}", shallow(random_state=seed, max_features=2)) for seed in range(12)]
    voting = functools.partial(ensemble.VotingClassifier, flatten_transform=False)
    scaled = pipeline.make_pipeline(StandardScaler(), PolynomialFeatures(3), linear_model.Ridge())
    return {
        "VotingClassifier, soft": _on_numbers(voting(classifiers, voting="soft"), x, three),
        "VotingClassifier, hard": _on_numbers(voting(classifiers, voting="hard"), x, three),
        "VotingClassifier, twelve trees": _on_numbers(voting(many, voting="soft"), x, three),
        "VotingRegressor": _on_numbers(ensemble.VotingRegressor(regressors), x, number),
        "StackingClassifier": _on_numbers(ensemble.StackingClassifier(classifiers, logistic(), cv=2), x, three),
        "StackingRegressor": _on_numbers(ensemble.StackingRegressor(regressors, linear_model.Ridge(), cv=2), x, number),
        "CalibratedClassifierCV, sigmoid": _on_numbers(
            calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2), x, three
        ),
        "CalibratedClassifierCV, isotonic": _on_numbers(
            calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2, method="isotonic"), x, two
        ),
        "OneVsRestClassifier": _on_numbers(multiclass.OneVsRestClassifier(logistic()), x, three),
        "OneVsOneClassifier": _on_numbers(multiclass.OneVsOneClassifier(logistic()), x, three),
        "MultiOutputClassifier": _on_numbers(multioutput.MultiOutputClassifier(logistic()), x, data.labels),
        "MultiOutputRegressor": _on_numbers(multioutput.MultiOutputRegressor(linear_model.Ridge()), x, data.both),
        "polynomial of degree 3": _on_numbers(scaled, x, number),
        "polynomial of degree 2, classified": _on_numbers(
            pipeline.make_pipeline(PolynomialFeatures(2), StandardScaler(), logistic(max_iter=300)), x, three
        ),
    }


def _transformers(data: _Data) -> dict[str, Recipe]:
    from sklearn import decomposition, feature_selection, impute, pipeline, preprocessing

    x, three = data.x, data.three
    on_numbers = {
        "StandardScaler": preprocessing.StandardScaler(),
        "MinMaxScaler": preprocessing.MinMaxScaler(),
        "MaxAbsScaler": preprocessing.MaxAbsScaler(),
        "RobustScaler": preprocessing.RobustScaler(),
        "Normalizer": preprocessing.Normalizer(),
        "Binarizer": preprocessing.Binarizer(),
        "KBinsDiscretizer": preprocessing.KBinsDiscretizer(5, encode="onehot-dense", quantile_method="linear"),
        "PolynomialFeatures, degree 2": preprocessing.PolynomialFeatures(2),
        "PolynomialFeatures, degree 3": preprocessing.PolynomialFeatures(3),
        "PolynomialFeatures, interactions": preprocessing.PolynomialFeatures(4, interaction_only=True),
        "PowerTransformer": preprocessing.PowerTransformer(),
        "QuantileTransformer": preprocessing.QuantileTransformer(n_quantiles=20),
        "PCA": decomposition.PCA(3),
        "TruncatedSVD": decomposition.TruncatedSVD(3, random_state=0),
        "KernelPCA": decomposition.KernelPCA(n_components=3, kernel="rbf"),
        "FeatureUnion": pipeline.FeatureUnion(
            [("s", preprocessing.StandardScaler()), ("p", decomposition.PCA(2)), ("m", preprocessing.MinMaxScaler())]
        ),
    }
    return {
        **{name: _on_numbers(estimator, x, None) for name, estimator in on_numbers.items()},
        "SelectKBest": _on_numbers(feature_selection.SelectKBest(k=3), x, three),
        "VarianceThreshold": _on_numbers(feature_selection.VarianceThreshold(), x, None),
        "SimpleImputer, mean": _on_numbers(impute.SimpleImputer(), data.holes, None),
        "SimpleImputer, constant": _on_numbers(
            impute.SimpleImputer(strategy="constant", fill_value=-1.0), data.holes, None
        ),
        "KNNImputer": _on_numbers(impute.KNNImputer(n_neighbors=3), data.holes, None),
    }


def _strings_and_columns(data: _Data) -> dict[str, Recipe]:
    from sklearn import compose, ensemble, feature_extraction, impute, linear_model, pipeline, preprocessing

    numbers, names = list(range(FEATURES)), [FEATURES, FEATURES + 1]
    logistic = functools.partial(linear_model.LogisticRegression, max_iter=300)

    def prepared(encoder: Any, *, each: bool = False) -> Any:
        filled = pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler())
        parts = [(f"n{column}", filled, [column]) for column in numbers] if each else [("numbers", filled, numbers)]
        return compose.ColumnTransformer([*parts, ("names", encoder, names)])

    one_hot = functools.partial(preprocessing.OneHotEncoder, handle_unknown="ignore", sparse_output=False)
    # Lower case would need a locale that not every machine has; ONNX Runtime refuses such a model where it is missing.
    tfidf = functools.partial(feature_extraction.text.TfidfVectorizer, lowercase=False)
    counts = functools.partial(feature_extraction.text.CountVectorizer, lowercase=False)
    columns = [data.town, data.colour]
    return {
        "OneHotEncoder, strings": _on_strings(one_hot(), columns),
        "OrdinalEncoder, strings": _on_strings(preprocessing.OrdinalEncoder(), columns),
        "OneHotEncoder and LogisticRegression": _on_strings(
            pipeline.make_pipeline(one_hot(), logistic()), columns, data.names
        ),
        "TfidfVectorizer": _on_text(tfidf(), data.text),
        "TfidfVectorizer, pairs of words": _on_text(tfidf(ngram_range=(1, 2)), data.text),
        "CountVectorizer": _on_text(counts(), data.text),
        "TfidfVectorizer and LogisticRegression": _on_text(
            pipeline.make_pipeline(tfidf(), logistic()), data.text, data.names
        ),
        "columns, LogisticRegression": _on_columns(
            pipeline.make_pipeline(prepared(one_hot()), logistic()), data, data.names
        ),
        "columns, LogisticRegression, no ZipMap": _on_columns(
            pipeline.make_pipeline(prepared(one_hot()), logistic()), data, data.two, {"zipmap": False}
        ),
        "columns one by one, RandomForestClassifier": _on_columns(
            pipeline.make_pipeline(prepared(one_hot(), each=True), ensemble.RandomForestClassifier(10, random_state=0)),
            data,
            data.three,
        ),
        "columns, ordinal, GradientBoostingRegressor": _on_columns(
            pipeline.make_pipeline(
                prepared(preprocessing.OrdinalEncoder()),
                ensemble.GradientBoostingRegressor(n_estimators=10, random_state=0),
            ),
            data,
            data.number,
        ),
    }


def _boosted(data: _Data) -> dict[str, Recipe]:
    import lightgbm
    import xgboost

    x, holes, two, three, number = data.x, data.holes, data.two, data.three, data.number
    light = {"n_estimators": 12, "verbose": -1, "n_jobs": 1, "random_state": 0}
    extreme = {"n_estimators": 12, "n_jobs": 1, "random_state": 0}
    return {
        "LightGBM, two classes": _by_lightgbm(lightgbm.LGBMClassifier(**light), x, two),
        "LightGBM, three classes, no ZipMap": _by_lightgbm(lightgbm.LGBMClassifier(**light), x, three, zipmap=False),
        "LightGBM, missing values": _by_lightgbm(lightgbm.LGBMClassifier(**light), holes, two),
        "LightGBM, regression": _by_lightgbm(lightgbm.LGBMRegressor(**light), x, number),
        "LightGBM, regression, missing values": _by_lightgbm(lightgbm.LGBMRegressor(**light), holes, number),
        "LightGBM, random forest": _by_lightgbm(
            lightgbm.LGBMClassifier(boosting_type="rf", bagging_freq=1, bagging_fraction=0.7, **light), x, two
        ),
        "XGBoost, two classes": _by_xgboost(xgboost.XGBClassifier(**extreme), x, two),
        "XGBoost, three classes": _by_xgboost(xgboost.XGBClassifier(**extreme), x, three),
        "XGBoost, missing values": _by_xgboost(xgboost.XGBClassifier(**extreme), holes, two),
        "XGBoost, regression": _by_xgboost(xgboost.XGBRegressor(**extreme), x, number),
        "XGBoost, regression, missing values": _by_xgboost(xgboost.XGBRegressor(**extreme), holes, number),
        "XGBoost, random forest": _by_xgboost(xgboost.XGBRFRegressor(**extreme), x, number),
    }

"""Recipes: the stages of a compression, in the order they run, as data and as TOML files."""

from fxcompress.passes.loosening import LOOSEN
from fxcompress.recipes.reading import load_recipe, named_recipes, read_recipe
from fxcompress.recipes.recipe import LOSSLESS, Recipe, recipe_of

__all__ = ["LOOSEN", "LOSSLESS", "Recipe", "load_recipe", "named_recipes", "read_recipe", "recipe_of"]

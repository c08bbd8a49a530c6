# %% [markdown]
# # See and change what is served
#
# Serve the example's models first: `segserve up -f examples/coins/model.yaml`.
# `pip install 'segserve[local]'` (a cluster: `'segserve[cluster]'`) has what `client.models` needs.
# As for the command line, the platform of this machine is meant where one is up, else the current kube context.

# %%
import yaml

from segserve import Client, InvalidResourceError, NotFoundError

client = Client()

# %% [markdown]
# The models are typed resources: what was asked for in `spec`, what became of it in `status`.

# %%
for model in client.models.list():
    print(model.metadata.name, model.spec.family, [each.name for each in model.spec.classes])
# > coins semantic-logits ['background', 'coin']
# > coins-instances yolo-seg ['coin']

# %%
coins = client.models.get("coins")
print(coins.status.roles.stable.revision, coins.status.weight)
# > coins-... 100

# %% [markdown]
# `wait` returns a model once its newest spec serves all its callers. Where it cannot come to that by itself, it raises
# `NotServingError` with the cause, at once.

# %%
served = client.models.wait("coins", timeout_s=60)
print(served.status.url)
# > http://127.0.0.1:.../v2/models/coins

# %% [markdown]
# `apply` takes a typed model, a mapping, a path or YAML text. A mistake names the field and what is allowed, and
# nothing is changed.

# %%
wrong = coins.to_dict()
wrong["spec"]["family"] = "semantic-logit"
try:
    client.models.apply(yaml.safe_dump(wrong))
except InvalidResourceError as error:
    print(error)
# > ...spec.family: unknown family 'semantic-logit'...

# %%
try:
    client.models.get("roads")
except NotFoundError as error:
    print(error)
# > no SegmentationModel 'roads'; there are: coins, ...

# %% [markdown]
# A model with `spec.rollout` changes step by step. These have none, so a new revision serves as soon as it is proved.

# %%
print(client.rollouts.list())
# > []
client.close()

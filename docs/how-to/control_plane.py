# %% [markdown]
# # List and change models
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# `client.models` needs the extra `segserve[local]`, or `segserve[cluster]` for a cluster. Like the command line, it
# uses this machine's platform if one is up, otherwise the current kube context.

# %%
import yaml

from segserve import Client, InvalidResourceError, NotFoundError

client = Client()

# %% [markdown]
# Models are typed resources: `spec` is the desired state, `status` the observed one.

# %%
for model in client.models.list():
    print(model.metadata.name, model.spec.family, [each.name for each in model.spec.classes])
# > coins semantic-logits ['background', 'coin']
# > coins-instances yolo-seg ['coin']

# %%
coins = client.models.get("coins")
if coins.status.roles.stable is not None:  # None until the first revision serves
    print(coins.status.roles.stable.revision, coins.status.weight)
# > coins-... 100

# %% [markdown]
# `wait` returns once the newest spec serves all callers. If that cannot happen without a change, it immediately
# raises `NotServingError` with the cause.

# %%
served = client.models.wait("coins", timeout_s=60)
print(served.status.url)
# > http://127.0.0.1:.../v2/models/coins

# %% [markdown]
# `apply` takes a typed model, a mapping, a path or YAML text. On a mistake it changes nothing, and the error names
# the field and the allowed values.

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
# Models with `spec.rollout` shift traffic in steps. The example models have none: a new revision takes all traffic as
# soon as it has passed its golden set.

# %%
print(client.rollouts.list())
# > []
client.close()

"""check_kubernetes.py FILE...: validates our manifests against Kubernetes' own schemas, strictly, and what schemas do not say."""

import sys

import kubernetes_validate
import yaml

# The first release in which all that we use is on by default and stable, and the newest one.
VERSIONS = ["1.31", kubernetes_validate.latest_version()]


def check_job(job):
    """What the API server checks beyond the schema, of the fields that we use."""
    spec = job["spec"]
    pod = spec["template"]["spec"]
    names = [container["name"] for container in pod["containers"]]
    assert pod["restartPolicy"] == "Never", "a pod failure policy needs it"
    for rule in spec["podFailurePolicy"]["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule), rule
        if "onExitCodes" in rule:
            values = rule["onExitCodes"]["values"]
            assert values == sorted(set(values)) and 0 not in values, rule
            assert rule["onExitCodes"]["containerName"] in names, rule
        if rule["action"] == "FailIndex":
            assert "backoffLimitPerIndex" in spec, rule
    if "backoffLimitPerIndex" in spec:
        assert spec["completionMode"] == "Indexed"
        assert spec["completions"] <= 100_000 and spec["parallelism"] <= 10_000
        assert len(f"{job['metadata']['name']}-{spec['completions'] - 1}") <= 63, "the name of a pod's host"
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        resources = list(yaml.safe_load_all(file))
    for resource in resources:
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)
        if resource["kind"] == "Job":
            check_job(resource)
        else:
            assert resource["kind"] == "ConfigMap" and resource["data"]["recipe.toml"], resource
    print(f"{path}: {', '.join(resource['kind'] for resource in resources)}: valid")

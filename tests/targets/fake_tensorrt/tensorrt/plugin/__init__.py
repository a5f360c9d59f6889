"""The decorators that give TensorRT a plugin in Python; what they decorate is registered, not called."""

import tensorrt


class TensorDesc:
    pass


class KernelLaunchParams:
    pass


class SymIntExprs:
    pass


def register(plugin_id):
    namespace, _, name = plugin_id.partition("::")

    def take(function):
        tensorrt.get_plugin_registry().add(name, namespace)
        return function

    return take


def aot_impl(plugin_id):
    return lambda function: function

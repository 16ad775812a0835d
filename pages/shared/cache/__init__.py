"""Every `st.cache_*` function of the app: `from pages.shared import cache`, then `cache.images.samples(...)`.

Arguments are ids, numbers and frozen values. What a `cache_resource` returns is shared by all visitors and
never written to. Imports no torch.
"""

from pages.shared.cache import attribution, images, runs, zoo

__all__ = ["attribution", "images", "runs", "zoo"]

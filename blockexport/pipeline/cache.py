"""Where on this machine scores and traces are kept between builds."""

from blockexport.core.host_cache import default_cache_folder, open_cache

__all__ = ["default_cache_folder", "open_cache"]

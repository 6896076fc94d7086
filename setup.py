"""Builds the package from the facts in settings.ini; nothing is stated twice."""
import configparser
import shlex
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = configparser.ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
facts = parser['DEFAULT']
extras = {key.removesuffix('_requirements'): shlex.split(value) for key, value in facts.items()
          if key.endswith('_requirements')}

setup(
    name=facts['lib_name'], version=facts['version'], description=facts['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=facts['author'], author_email=facts['author_email'], url=facts['git_url'],
    keywords=facts['keywords'].split(), license_expression='Apache-2.0', license_files=['LICENSE'],
    packages=find_packages(include=['cxr_explain', 'cxr_explain.*']), include_package_data=True,
    python_requires=f">={facts['min_python']}", install_requires=shlex.split(facts['requirements']),
    extras_require=extras, entry_points={'console_scripts': [facts['console_scripts']]},
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'], zip_safe=False)

from comparisons.landscape.study import main

main()
